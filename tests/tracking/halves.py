"""A run in two halves, and what a server must contain after it."""

from pathlib import Path

from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker, sync_runs
from tests.tracking.servers import Held

STEPS = 40
HALF = STEPS // 2


def make_tracker(
    directory: Path, port: int, lines: list[str] | None = None, experiment: str = "digits"
) -> Tracker:
    settings = TrackingSettings(uri=f"http://127.0.0.1:{port}")
    say = print if lines is None else lines.append
    return Tracker(settings, experiment=experiment, directory=directory, say=say)


def sync(directory: Path, port: int, experiment: str = "digits") -> list[str]:
    settings = TrackingSettings(uri=f"http://127.0.0.1:{port}")
    return list(sync_runs(settings, experiment, directory))


def begin(tracker: Tracker, directory: Path, name: str = "one") -> None:
    """The first half of a run."""
    (directory / "model").mkdir(parents=True, exist_ok=True)
    (directory / "model" / "weights.bin").write_bytes(bytes(range(256)))
    tracker.start("experiment", name, params={"seed": 1, "space": {"grid": [0, 0.5]}})
    tracker.start("search", f"{name} search", parent="experiment")
    for step in range(HALF):
        tracker.metrics("search", {"loss": 1 / (1 + step), "macs": float(step)}, step)


def end(tracker: Tracker, directory: Path) -> None:
    """The second half."""
    for step in range(HALF - 2, STEPS):
        # Resumed work repeats the last steps.
        tracker.metrics("search", {"loss": 1 / (1 + step), "macs": float(step)}, step)
    tracker.artifact("search", directory / "model", "exports")
    tracker.model("search", directory / "model", digest="5a3e" * 16, alias="best", tags={"a": "b"})
    tracker.finish("search")
    tracker.close()


def expected(*names: str, experiment: str = "digits") -> Held:
    """What a server contains after both halves of some runs."""
    searches = [f"{name} search" for name in names]
    everyone = sorted([*names, *searches])
    steps = list(range(STEPS))
    return Held(
        names=everyone,
        status=dict.fromkeys(everyone, "FINISHED"),
        params={name: 2 if name in names else 0 for name in everyone},
        metrics={
            name: {} if name in names else {"loss": steps, "macs": steps} for name in everyone
        },
        artifacts={
            name: [] if name in names else ["exports/model/weights.bin"] for name in everyone
        },
        parents=dict(zip(searches, names, strict=True)),
        versions={experiment: [str(1 + index) for index in range(len(names))]},
    )
