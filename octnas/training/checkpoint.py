"""Checkpoints of a training: whole or absent, and read without running what they hold."""

import io
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from octnas.errors import TrainingError
from octnas.io.files import remove_all_drafts, remove_tree, write_bytes

SCHEMA = 1
# Behind torch's file stands the digest of its bytes.
_DIGEST = 32
_KEPT = 2


# What torch raises over a file that holds something else.
_UNREADABLE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@runtime_checkable
class Stateful(Protocol):
    """What can be saved and goes on from what was saved: tensors, numbers, text, dicts, lists."""

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that changes as it works."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Go on from what `state_dict` gave."""
        ...


class BrokenCheckpointError(Exception):
    """A checkpoint that cannot be read, with the reason."""


@dataclass(frozen=True)
class Checkpoints:
    """The last two checkpoints of one training.

    Attributes:
        folder: of this training alone.
        seconds: the least time between two of them; 0 for one after every step.
    """

    folder: Path
    seconds: float = 60.0

    def write(self, step: int, state: Mapping[str, Any]) -> None:
        """Write what a training holds after so many steps, and remove what is older.

        Raises:
            TrainingError: the disk is full or cannot be written to.
        """
        buffer = io.BytesIO()
        torch.save({"schema": SCHEMA, "step": step, "state": dict(state)}, buffer)
        buffer.write(sha256(buffer.getbuffer()).digest())
        path = self._path(step)
        try:
            write_bytes(path, buffer.getbuffer())
        except OSError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error}); when that is mended, the same command goes "
                "on from the checkpoint before"
            ) from error
        for path in self._paths()[_KEPT:]:
            path.unlink()

    def restore(self, target: Stateful) -> None:
        """Let a training go on from the last checkpoint that can be read, if there is one.

        Those that cannot be read are removed, with a warning.

        Raises:
            TrainingError: it is of another training, or was written by another version.
        """
        remove_all_drafts(self.folder)
        for path in self._paths():
            try:
                document = _read(path)
            except BrokenCheckpointError as error:
                warnings.warn(
                    f"{path}: cannot be read ({error}); going on from the checkpoint before it, "
                    "or from the beginning if there is none",
                    stacklevel=2,
                )
                path.unlink()
                continue
            _load(target, document, path)
            return

    def remove(self) -> None:
        """Remove them all: the training is finished."""
        remove_tree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:010d}.checkpoint"

    def _paths(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("step-*.checkpoint"), reverse=True)


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    body, digest = memoryview(content)[:-_DIGEST], content[-_DIGEST:]
    if sha256(body).digest() != digest:
        raise BrokenCheckpointError("truncated or changed: its digest is not that of its bytes")
    try:
        with warnings.catch_warnings():
            # Torch wonders about files that it did not write itself before it refuses them.
            warnings.simplefilter("ignore")
            document = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise BrokenCheckpointError(reason) from error
    if not isinstance(document, dict):
        raise BrokenCheckpointError("it is no checkpoint")
    return document


def _load(target: Stateful, document: dict[str, Any], path: Path) -> None:
    found = document.get("schema")
    if found != SCHEMA:
        raise TrainingError(f"{path}: schema: found {found!r}, allowed: {SCHEMA}")
    try:
        target.load_state_dict(document["state"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{path}: does not fit this training ({type(error).__name__}: {reason}); "
            "redo the stage with --fresh"
        ) from error
