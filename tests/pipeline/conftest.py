import shutil
from pathlib import Path

import pytest

from octnas.pipeline.stages import run_stages
from tests.pipeline.tiny_ranking import STAGES, open_ranking


@pytest.fixture(scope="session")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished tiny ranking check, for tests that only read it."""
    path = tmp_path_factory.mktemp("ranked")
    run_stages(open_ranking(path), STAGES)
    return path


@pytest.fixture
def spoilable(ranked: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(ranked, tmp_path / "copy")
    return tmp_path / "copy"
