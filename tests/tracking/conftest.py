import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octnas.tracking.settings import TrackingSettings
from octnas.tracking.store import DEFAULTS, FORCED
from octnas.tracking.tracker import Tracker

MakeTracker = Callable[..., Tracker]
Say = Callable[[str], None]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's MLflow settings; restore them afterwards."""
    for name in (*FORCED, *DEFAULTS):
        monkeypatch.setenv(name, "")  # remembers the value to restore
        monkeypatch.delenv(name)
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.fixture
def runs(tmp_path: Path, migrated: Path) -> Path:
    """A folder ``runs/`` with a store."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    return folder


@pytest.fixture
def make_tracker(runs: Path) -> Iterator[MakeTracker]:
    """Create a tracker as a new process would: ``make_tracker(run="digits", **settings)``."""
    made = []

    def make(run: str = "digits", say: Say = print, **settings: object) -> Tracker:
        directory = runs / run
        tracker = Tracker(
            TrackingSettings(**settings),  # type: ignore[arg-type]
            experiment="digits",
            directory=directory,
            say=say,
        )
        made.append(tracker)
        return tracker

    yield make
    for tracker in made:
        if tracker._sender is not None:
            tracker._sender.close(0)
