import shutil
from pathlib import Path

import pytest

from octnas.pipeline.stages import run_stages
from tests.conftest import built_once
from tests.pipeline.tiny import with_store
from tests.pipeline.tiny_ranking import STAGES, open_ranking


@pytest.fixture(scope="session")
def ranked(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished tiny ranking check, for tests that only read it."""

    def rank(path: Path) -> None:
        with_store(path, migrated)
        run_stages(open_ranking(path), STAGES)

    return built_once(tmp_path_factory, "ranked", rank)


@pytest.fixture
def spoilable(ranked: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(ranked, tmp_path / "copy")
    return tmp_path / "copy"
