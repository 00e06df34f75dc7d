"""Checkpoints of a training: written whole or not at all, and read without running code."""

import io
import pickle
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
# The digest of torch's bytes is appended to them.
_DIGEST = 32
_KEPT = 2


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be saved: tensors, numbers, strings, dicts, lists."""

    def state_dict(self) -> Mapping[str, Any]:
        """All that changes during a training."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore what `state_dict` returned."""
        ...


@dataclass(frozen=True)
class Checkpoints:
    """The last two checkpoints of one training.

    Attributes:
        folder: of this training alone.
        seconds: least time between two of them; 0 for one after every step.
    """

    folder: Path
    seconds: float = 60.0

    def write(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after a number of steps, and remove older checkpoints.

        Raises:
            TrainingError: the disk is full or not writable.
        """
        buffer = io.BytesIO()
        torch.save({"schema": SCHEMA, "step": step, "state": dict(state)}, buffer)
        buffer.write(sha256(buffer.getbuffer()).digest())
        path = self.folder / f"step-{step:010d}.checkpoint"
        try:
            write_bytes(path, buffer.getbuffer())
        except OSError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error}); free or repair the disk, then the same "
                "command resumes from the previous checkpoint"
            ) from error
        for path in self._paths()[_KEPT:]:
            path.unlink()

    def restore(self, target: Stateful) -> None:
        """Restore a training from the last readable checkpoint, if there is one.

        Unreadable ones are removed with a warning.

        Raises:
            TrainingError: it is from another training or another version of octnas.
        """
        remove_all_drafts(self.folder)
        for path in self._paths():
            if (document := _read(path)) is not None:
                _load(target, document, path)
                return
            warnings.warn(
                f"{path}: cannot be read (truncated or changed); resuming from the previous "
                "checkpoint, or from the beginning if there is none",
                stacklevel=2,
            )
            path.unlink()

    def remove(self) -> None:
        """Remove all: the training is finished."""
        remove_tree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.checkpoint"), reverse=True)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint; None if it is not as it was written."""
    content = path.read_bytes()
    body, digest = memoryview(content)[:-_DIGEST], content[-_DIGEST:]
    if sha256(body).digest() != digest:
        return None
    try:
        document: dict[str, Any] = torch.load(
            io.BytesIO(body), map_location="cpu", weights_only=True
        )
    except pickle.UnpicklingError:
        return None
    return document


def _load(target: Stateful, document: dict[str, Any], path: Path) -> None:
    if (found := document.get("schema")) != SCHEMA:
        raise TrainingError(f"{path}: schema: found {found!r}, allowed: {SCHEMA}")
    try:
        target.load_state_dict(document["state"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{path}: does not fit this training ({type(error).__name__}: {reason}); "
            "redo the stage with --fresh"
        ) from error
