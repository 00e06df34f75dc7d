from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from octnas.nn.shapes import search_space
from octnas.space import SearchSpace
from octnas.training.data import DigitImages
from octnas.training.settings import FolderSettings
from tests.training.small import digits


@pytest.fixture(scope="session")
def digit_space() -> SearchSpace:
    """A narrow network on digits: 7 sites of 3 choices."""
    args = {"num_classes": 10, "channels": [4, 8, 8]}
    return search_space(
        "thumbnail_resnet",
        (1, 16, 16),
        (0, 0.5, 1),
        backbone_args=args,
        fixed={},
        stride_mode="paper",
    )


@pytest.fixture(scope="session")
def few_digits() -> DigitImages:
    return DigitImages(digits(320, 60, 60, 80))


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of one colour each: 12 training and 4 validation images of 20×24 pixels."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for label, name in enumerate(("blue", "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 40, (20, 24, 3), dtype=np.uint8)
                pixels[..., 2 * (1 - label)] += 200
                Image.fromarray(pixels).save(folder / f"{index}.jpeg")
    return root


@pytest.fixture
def folder_settings(image_tree: Path) -> FolderSettings:
    return FolderSettings(root=str(image_tree), rank_per_class=3, read_per_class=2, workers=0)
