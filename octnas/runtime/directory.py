"""Where the stages write, and what each stage was made with.

Every stage has a folder with a marker, ``stage.json``, that holds the fingerprint of its settings
and inputs. A finished stage is skipped if its fingerprint matches the current one; if it does not,
the run is refused and the changed key named, so that results are never stale.
"""

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from octnas.errors import RunDirectoryError
from octnas.io.files import read_json, remove_tree, write_json
from octnas.settings import with_current_names

SCHEMA = 1
MARKER = "stage.json"
_FORGOTTEN = ".forgotten-"

ORIGINAL, CONVERT = "original", "convert"

# Each stage with those that it builds on, in the order of a run.
STAGES: Mapping[str, tuple[str, ...]] = {
    "data": (),
    "space": ("data",),
    # Only in runs that begin with a trained network, the first where they train it themselves; the
    # supernet and retraining then build on the second.
    ORIGINAL: ("space",),
    CONVERT: ("space",),
    "supernet": ("space",),
    "truth": ("space",),
    "rank": ("supernet", "truth"),
    "search": ("supernet",),
    "retrain": ("search",),
    "export": ("retrain",),
    "report": ("retrain",),
}

# What `octnas run` does; the others have commands of their own.
WHOLE_RUN = tuple(stage for stage in STAGES if stage not in (ORIGINAL, CONVERT, "truth", "rank"))


def check_links(path: Path) -> None:
    """Refuse a run directory with links that lead out of it, before anything is removed there.

    The run directory may be missing or a link itself, and links within it may lead to other parts
    of it.

    Raises:
        RunDirectoryError: naming the link and its target.
    """
    home = Path(os.path.realpath(path))
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            link = os.path.join(folder, name)  # noqa: PTH118 - of tens of thousands of files
            # `Path.resolve` refuses links in a circle.
            if os.path.islink(link) and not Path(target := os.path.realpath(link)).is_relative_to(  # noqa: PTH114
                home
            ):
                raise RunDirectoryError(
                    f"{link}: a link that leads out of the run directory, to {target}; remove it, "
                    "replace it by its target, or link the run directory as a whole"
                )


@dataclass(frozen=True)
class Marker:
    """The contents of ``stage.json``; ``finished`` is None before the stage is."""

    finished: str | None
    fingerprint: Mapping[str, Any]


class RunDirectory:
    """The folder of one run, made when something is first written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stage(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.path / stage

    def marker(self, stage: str) -> Marker | None:
        """A stage's marker; None where the stage has not begun.

        Raises:
            RunDirectoryError: the marker cannot be read or has an unknown schema.
        """
        path = self.stage(stage) / MARKER
        return read_json(path, Marker, schema=SCHEMA) if path.exists() else None

    def finished(self, stage: str) -> str | None:
        """When a stage was finished; None if it was not."""
        marker = self.marker(stage)
        return marker.finished if marker else None

    def check(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Refuse a stage that was begun with other settings.

        Raises:
            RunDirectoryError: naming the changed keys and what to do.
        """
        if what := self.changes(stage, fingerprint):
            raise RunDirectoryError(
                f"{self.path}: stage {stage} was made with other settings ({what}); "
                f"redo it and what depends on it with --fresh {stage}, or use another --run-dir"
            )

    def changes(self, stage: str, fingerprint: Mapping[str, Any]) -> str:
        """The keys in which a stage was begun with other settings; empty if there are none."""
        marker = self.marker(stage)
        if marker is None:
            return ""
        before, now = with_current_names(marker.fingerprint), json.loads(json.dumps(fingerprint))
        for key in [key for key in before if key.startswith("input.")]:
            # Made with this very input, whose own settings are checked by their current names.
            base = key.removeprefix("input.")
            made = self.marker(base) if base in STAGES else None
            if made and before.get(key) == digest(made.fingerprint):
                before[key] = now.get(key)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return "; ".join(f"{key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)

    def begin(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Note that a stage begins that can be resumed from its files if it is interrupted."""
        if self.marker(stage) is None:
            self._mark(stage, fingerprint, finished=None)

    def finish(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Note that a stage is finished; the last thing that it writes."""
        self._mark(stage, fingerprint, finished=datetime.now(UTC).isoformat(timespec="seconds"))

    def _mark(self, stage: str, fingerprint: Mapping[str, Any], finished: str | None) -> None:
        document = {"schema": SCHEMA, "stage": stage, "finished": finished}
        write_json(self.stage(stage) / MARKER, {**document, "fingerprint": dict(fingerprint)})

    def _bases(self, stage: str) -> set[str]:
        """What a stage was built on, by its marker; by default if that says nothing."""
        try:
            marker = self.marker(stage)
        except RunDirectoryError:
            # A stage can be redone even if its marker is damaged.
            marker = None
        inputs = (key.partition("input.")[2] for key in (marker.fingerprint if marker else ()))
        return set(filter(None, inputs)) or set(STAGES[stage])

    def forget(self, stage: str) -> list[str]:
        """Remove a stage's results and those of the stages that depend on it; their names."""
        redone = list(dependents(stage, {name: self._bases(name) for name in STAGES}))
        for name in reversed(redone):
            # Renamed first, so that no stage resumes from the leftovers of an interrupted removal;
            # also a broken link, which nothing could be written to.
            if (folder := self.stage(name)).exists() or folder.is_symlink():
                folder.rename(self.path / f"{_FORGOTTEN}{name}-{uuid.uuid4().hex}")
        self.remove_forgotten()
        return redone

    def remove_forgotten(self) -> None:
        """Remove forgotten results, also those of a process that was killed while removing."""
        for folder in self.path.glob(f"{_FORGOTTEN}*"):
            remove_tree(folder)


def dependents(stage: str, stages: Mapping[str, Iterable[str]] = STAGES) -> Iterable[str]:
    """A stage and all that build on it, in the order of a run."""
    found = {stage}
    for name, bases in stages.items():
        if found.intersection(bases):
            found.add(name)
    return [name for name in STAGES if name in found]


def digest(fingerprint: Mapping[str, Any]) -> str:
    """A short hash of a fingerprint, by which later stages know it."""
    canonical = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()[:16]
