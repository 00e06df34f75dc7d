"""Where the stages write, and what each stage was made with.

Every stage has a folder with a marker, ``stage.json``, that holds the fingerprint of its settings
and inputs. A finished stage is skipped if its fingerprint matches what is asked for now; if it
does not, the run is refused and the changed key named, so that results are never stale.
"""

import errno
import json
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from octnas.errors import RunDirectoryError
from octnas.io.files import parse_json, read_as, read_regular, remove_tree, write_json
from octnas.settings import with_current_names

SCHEMA = 1
MARKER = "stage.json"
_FORGOTTEN = ".forgotten-"

# Each stage with those that it builds on, in the order of a run.
STAGES: Mapping[str, tuple[str, ...]] = {
    "data": (),
    "space": ("data",),
    "supernet": ("space",),
    "truth": ("space",),
    "rank": ("supernet", "truth"),
    "search": ("supernet",),
    "retrain": ("search",),
    "export": ("retrain",),
    "report": ("retrain",),
}

# What `octnas run` does; the others have commands of their own.
WHOLE_RUN = tuple(stage for stage in STAGES if stage not in ("truth", "rank"))


def read_json(path: Path) -> Any:
    """Read a JSON file of the run directory.

    Raises:
        RunDirectoryError: it is missing or is not JSON.
    """
    try:
        return parse_json(read_regular(path))
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: missing; run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: cannot be read as JSON ({error})") from error


def read_document(path: Path, schema: int, *keys: str) -> dict[str, Any]:
    """Read a JSON object of the run directory that carries a schema version.

    Raises:
        RunDirectoryError: it is missing, has another schema, or lacks one of the keys.
    """
    document = read_json(path)
    found = document.get("schema") if isinstance(document, dict) else document
    if found != schema:
        raise RunDirectoryError(f"{path}: schema: found {found!r}, allowed: {schema}")
    if missing := [key for key in keys if key not in document]:
        raise RunDirectoryError(f"{path}: {', '.join(missing)}: missing; redo the stage")
    return dict(document)


@contextmanager
def reading(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong inside, where a file's contents are taken apart, into one clear error.

    Args:
        path: of the file.
        others: what else may go wrong there.

    Raises:
        RunDirectoryError: naming the file.
    """
    wrong: tuple[type[Exception], ...] = (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        *others,
    )
    try:
        yield
    except wrong as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunDirectoryError(
            f"{path}: does not hold what it should ({reason}); redo its stage with --fresh"
        ) from error


def check_links(path: Path) -> None:
    """Refuse a run directory with links that lead out of it, pipes or devices.

    This comes before anything is written there.

    A run directory may be anybody's, and what is removed or cut off in it must be its own. It may
    be a link itself, and links within it may lead to what else it holds.

    Args:
        path: of the run directory, which need not be there yet.

    Raises:
        RunDirectoryError: naming the link, and where it leads; or the pipe or device.
        OSError: a folder that cannot be looked at, and could be written to.
    """
    home, waiting = Path(os.path.realpath(path)), [str(path)]
    while waiting:
        place = waiting.pop()
        with _passing(place), os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_symlink():
                    # Unlike `Path.resolve`, it takes no offence at links in a circle.
                    target = os.path.realpath(entry.path)
                    if not Path(target).is_relative_to(home):
                        raise RunDirectoryError(
                            f"{entry.path!r}: is a link that leads out of the run directory, to "
                            f"{target!r}; remove it, put what it leads to in its place, or link "
                            "the run directory as a whole"
                        )
                elif _never_ends(entry):
                    raise RunDirectoryError(f"{entry.path!r}: is a pipe or a device; remove it")


def _never_ends(entry: "os.DirEntry[str]") -> bool:
    """Whether reading it may wait for ever, or give ever more."""
    if entry.is_file(follow_symlinks=False):
        return False
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


@contextmanager
def _passing(folder: str) -> Iterator[None]:
    """Pass over a folder that is gone, or below which this user reaches nothing."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        # Others may be at work there. What is no folder is refused by whoever writes below it.
        return
    except PermissionError:
        if os.access(folder, os.X_OK):
            raise
    except OSError as error:
        # On NFS, what another host has removed.
        if error.errno != errno.ESTALE:
            raise


@dataclass(frozen=True)
class _Marker:
    finished: str | None
    fingerprint: Mapping[str, Any]


class RunDirectory:
    """The folder of one run.

    Attributes:
        path: the folder; made when something is first written to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def stage(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.path / stage

    def marker(self, stage: str) -> dict[str, Any] | None:
        """What a stage's marker says; None where the stage has not begun.

        Raises:
            RunDirectoryError: the marker cannot be read or has an unknown schema.
        """
        path = self.stage(stage) / MARKER
        if not path.exists():
            return None
        document = read_document(path, SCHEMA, "finished", "fingerprint")
        with reading(path):
            read_as(_Marker, {key: document[key] for key in ("finished", "fingerprint")})
        return document

    def finished(self, stage: str) -> str | None:
        """When a stage was finished; None if it was not."""
        marker = self.marker(stage)
        return marker["finished"] if marker else None

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
        before, now = with_current_names(marker["fingerprint"]), json.loads(json.dumps(fingerprint))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return "; ".join(f"{key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)

    def begin(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Note that a stage begins whose files it will go on with if it is broken off."""
        if self.marker(stage) is None:
            self._mark(stage, fingerprint, finished=None)

    def finish(self, stage: str, fingerprint: Mapping[str, Any]) -> None:
        """Note that a stage is finished; the last thing that it writes."""
        self._mark(stage, fingerprint, finished=datetime.now(UTC).isoformat(timespec="seconds"))

    def _mark(self, stage: str, fingerprint: Mapping[str, Any], finished: str | None) -> None:
        document = {"schema": SCHEMA, "stage": stage, "finished": finished}
        write_json(self.stage(stage) / MARKER, {**document, "fingerprint": dict(fingerprint)})

    def _bases(self, stage: str) -> set[str]:
        """What a stage builds on: always, or, as its marker says, with its settings."""
        try:
            marker = self.marker(stage) or {"fingerprint": {}}
        except RunDirectoryError:
            # A stage whose marker is spoilt must be one that can be done anew.
            marker = {"fingerprint": {}}
        inputs = (key.partition("input.")[2] for key in marker["fingerprint"])
        return {*STAGES[stage], *filter(None, inputs)}

    def forget(self, stage: str) -> list[str]:
        """Remove a stage's results and those of the stages that depend on it; their names."""
        gone = list(dependents(stage, {name: self._bases(name) for name in STAGES}))
        for name in reversed(gone):
            # Out of the way in one step, so that what is left of a removal that was broken off is
            # not gone on with.
            # Also a link that leads nowhere: nothing could be written there.
            if (folder := self.stage(name)).exists() or folder.is_symlink():
                folder.rename(self.path / f"{_FORGOTTEN}{name}-{uuid.uuid4().hex}")
        self.remove_forgotten()
        return gone

    def remove_forgotten(self) -> None:
        """Remove what is forgotten: whoever forgot it may have been killed meanwhile."""
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
