from pathlib import Path

import pytest

from octnas.data.digits import DigitImages
from octnas.data.settings import CacheSettings, ImagesSettings
from tests.data.trees import make_tree
from tests.training.small import digits


@pytest.fixture(scope="session")
def few_digits() -> DigitImages:
    return DigitImages(digits(320, 60, 60, 80))


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree that tests leave as it is."""
    return make_tree(tmp_path_factory.mktemp("images"))


@pytest.fixture
def settings(image_tree: Path, tmp_path: Path) -> ImagesSettings:
    return ImagesSettings(root=str(image_tree), search_val_per_class=3, read_per_class=2, workers=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree that a test may change."""
    return make_tree(tmp_path / "tree")


@pytest.fixture
def own(root: Path, tmp_path: Path) -> ImagesSettings:
    cache = CacheSettings(enabled=True, folder=str(tmp_path / "cache"))
    return ImagesSettings(
        root=str(root), search_val_per_class=3, read_per_class=2, workers=0, cache=cache
    )
