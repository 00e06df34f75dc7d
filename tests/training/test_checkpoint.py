"""Files of checkpoints."""

import os
import pickle
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import octnas.training.checkpoint as module
from octnas.errors import TrainingError
from octnas.training.checkpoint import Checkpoints, Stateful


class Weights:
    """One tensor."""

    def __init__(self, size: int = 3) -> None:
        self.values = torch.zeros(size)

    def state_dict(self) -> Mapping[str, Any]:
        return {"values": self.values, "name": "α", "numbers": [1, 2.5, None, True]}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        assert state["numbers"] == [1, 2.5, None, True]
        self.values.copy_(state["values"])


def write(checkpoints: Checkpoints, *steps: int) -> None:
    weights = Weights()
    for step in steps:
        weights.values.fill_(step)
        checkpoints.write(step, weights.state_dict())


def restored(checkpoints: Checkpoints) -> int:
    """The step of what is read; 0 if nothing is."""
    weights = Weights()
    checkpoints.restore(weights)
    return int(weights.values[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def test_what_was_written_comes_back(checkpoints: Checkpoints) -> None:
    assert isinstance(Weights(), Stateful)
    write(checkpoints, 7)
    assert restored(checkpoints) == 7


def test_without_checkpoints_a_training_begins(checkpoints: Checkpoints) -> None:
    assert restored(checkpoints) == 0
    assert not checkpoints.folder.exists()


def test_removing_a_linked_folder_keeps_its_target(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    checkpoints.folder.symlink_to(tmp_path / "elsewhere")
    write(checkpoints, 7)
    assert restored(checkpoints) == 7
    checkpoints.remove()
    assert restored(checkpoints) == 0
    assert names(tmp_path / "elsewhere") == ["step-0000000007.checkpoint"]


def test_the_last_two_are_kept(checkpoints: Checkpoints) -> None:
    write(checkpoints, 2, 9, 10, 100)
    assert names(checkpoints.folder) == [
        "step-0000000010.checkpoint",
        "step-0000000100.checkpoint",
    ]
    assert restored(checkpoints) == 100
    checkpoints.remove()
    assert not checkpoints.folder.exists()
    checkpoints.remove()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "short": lambda content: content[:20],
    "half": cut,
    "but for a byte": lambda content: content[:-1],
    "a bit": flip,
    "longer": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(
    checkpoints: Checkpoints, how: str
) -> None:
    write(checkpoints, 1, 2)
    newest = checkpoints.folder / "step-0000000002.checkpoint"
    newest.write_bytes(DAMAGE[how](newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"step-0000000002\.checkpoint: cannot be read"):
        assert restored(checkpoints) == 1
    # It does not block later ones.
    write(checkpoints, 2)
    assert restored(checkpoints) == 2


def test_a_training_begins_again_if_all_are_damaged(checkpoints: Checkpoints) -> None:
    write(checkpoints, 1, 2)
    for path in checkpoints.folder.iterdir():
        path.write_bytes(cut(path.read_bytes()))
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        assert restored(checkpoints) == 0
    assert len(caught) == 2
    assert names(checkpoints.folder) == []


class Malicious:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """Even with the right digest."""
    write(checkpoints, 1)
    made = tmp_path / "made"
    path = checkpoints.folder / "step-0000000002.checkpoint"
    document = {"schema": 1, "step": 2, "state": Malicious(made)}
    torch.save(document, path)
    content = path.read_bytes()
    path.write_bytes(content + sha256(content).digest())
    with pytest.warns(UserWarning, match="cannot be read"):
        assert restored(checkpoints) == 1
    assert not made.exists()
    pickle.loads(pickle.dumps(document))
    assert made.exists()


def test_another_schema_and_another_training_are_refused(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoints, 3)
    with pytest.raises(TrainingError, match=r"0003\.checkpoint: does not fit this training") as e:
        checkpoints.restore(Weights(4))
    assert len(str(e.value).splitlines()) == 1
    checkpoints.write(4, {})
    with pytest.raises(TrainingError, match="does not fit this training"):
        checkpoints.restore(Weights())
    monkeypatch.setattr(module, "SCHEMA", 2)
    with pytest.raises(TrainingError, match="schema: found 1, allowed: 2"):
        checkpoints.restore(Weights())
    assert len(names(checkpoints.folder)) == 2


def test_a_failed_write_keeps_the_previous_checkpoint(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoints, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"cannot be written .*No space left") as caught:
            write(checkpoints, 2)
    assert len(str(caught.value).splitlines()) == 1
    assert names(checkpoints.folder) == ["step-0000000001.checkpoint"]
    # A killed process has no time to remove what it was writing.
    (checkpoints.folder / ".step-0000000002.checkpoint.draft-abc").write_bytes(b"half")
    (checkpoints.folder / ".step-notes").touch()
    assert restored(checkpoints) == 1
    assert names(checkpoints.folder) == [".step-notes", "step-0000000001.checkpoint"]
