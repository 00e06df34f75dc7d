"""Images decoded in other processes, which may be killed or run out of memory."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from octnas.data.from_files import FileImages, load
from octnas.data.sources import FileReader, Reader
from octnas.errors import DataError

COUNT = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(COUNT):
        Image.new("RGB", (20, 18)).save(tmp_path / f"{index}.png")
    return tmp_path


def shape(image: Image.Image, _: object) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def all_of(reader: Reader, workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    names = [f"{index}.png" for index in range(COUNT)]
    asked = [(some, torch.empty(5, 0)) for some in torch.arange(COUNT).split(5)]
    return list(FileImages(names, range(COUNT), reader, workers).shaped(asked, shape))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_gone_is_one_line(folder: Path, workers: int) -> None:
    """Not the traceback of a loader's process."""
    (folder / "7.png").unlink()
    with pytest.raises(
        DataError, match=r"^7\.png: cannot be read any more \(FileNotFound"
    ) as caught:
        all_of(FileReader(folder), workers)
    assert "\n" not in str(caught.value)


class Deadly:
    """A reader whose process is killed, as the system does for want of memory."""

    def read(self, _: str) -> Image.Image:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def stamp(self, _: str) -> str:
        return ""


def test_a_process_that_is_killed_is_one_line() -> None:
    with pytest.raises(DataError, match=r"^a process that decodes images died"):
        all_of(Deadly(), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_stay(folder: Path, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert len(all_of(FileReader(folder), workers)) == 2
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


@pytest.mark.parametrize(
    "said",
    [
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. ",
    ],
)
def test_no_shared_memory(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", broken)
    with pytest.raises(DataError, match=r"/dev/shm is too small .* set data.workers=0"):
        list(load([1, 2], 0, [0]))  # type: ignore[arg-type]


LEFT_BEHIND = """
import os, signal
from octnas.data.from_files import load
batches = load(list(range(1000)), 2, range(1000))
next(batches)
if {group}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import subprocess
    subprocess.run(["sh", "-c", f"kill -TERM -{{os.getpid()}}"])
    print(sum(1 for _ in batches))
"""


@pytest.mark.parametrize(("group", "said"), [(False, ""), (True, "999\n")])
def test_processes_end_with_their_parent_and_not_with_its_group(group: bool, said: str) -> None:
    """At its exit a process terminates what it has left behind, and waits for it."""
    found = subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND.format(group=group)],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, said)
