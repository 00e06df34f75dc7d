"""Batches straight from files, by a loader's own processes too.

Processes that decode images, where they cannot hand them over.
"""

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

from octnas.data.batches import WHOLE, Part
from octnas.data.from_files import FileEvaluation, Files, FileTraining, load, transforms
from octnas.data.settings import AugmentSettings, ImagesSettings
from octnas.data.sources import FileReader
from octnas.errors import DataError

COUNT = 10
SETTINGS = ImagesSettings(root="/x", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of one gray each, 20 times their number, and then some."""
    for index in range(COUNT):
        image = Image.new("RGB", (20, 18), (20 * index, 20 * index, 20 * index))
        image.save(tmp_path / f"{index}.png")
    return tmp_path


def files(folder: Path, settings: ImagesSettings = SETTINGS, *, training: bool = True) -> Files:
    names = [f"{index}.png" for index in range(COUNT)]
    transform = transforms(settings, (3, 12, 12))[0 if training else 1]
    return Files(names, range(COUNT), FileReader(folder), transform)


def training(folder: Path, batch: int, workers: int = 0, part: Part = WHOLE) -> FileTraining:
    return FileTraining(files(folder), workers, batch, 0, part)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_shows_every_image_once_with_its_label(folder: Path, workers: int) -> None:
    batches = training(folder, 3, workers)
    for number in range(2):
        shown = list(batches.epoch(number))
        assert len(shown) == len(batches) == COUNT // 3
        labels = torch.cat([labels for _, labels in shown])
        assert len(set(labels.tolist())) == 9
        pixels = torch.cat([pixels for pixels, _ in shown])
        assert torch.allclose(pixels.mean((1, 2, 3)) * 255 / 20, labels.float(), atol=0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_from_its_middle(folder: Path, workers: int) -> None:
    """As it would have gone on, and without opening what comes before."""
    whole = [list(training(folder, 3).epoch(number)) for number in range(2)]
    for label in whole[1][0][1].tolist():
        (folder / f"{label}.png").unlink()
    rest = list(training(folder, 3, workers).epoch(1, 1))
    assert len(rest) == 2
    for (pixels, labels), expected in zip(rest, whole[1][1:], strict=True):
        assert torch.equal(pixels, expected[0])
        assert torch.equal(labels, expected[1])
    with pytest.raises(DataError):
        list(training(folder, 3, workers).epoch(1))


def test_ranks_cover_every_batch(folder: Path) -> None:
    parts = [list(training(folder, 4, part=Part(rank, 2)).epoch(0)) for rank in range(2)]
    for step, (_, labels) in enumerate(training(folder, 4).epoch(0)):
        shares = [part[step][1] for part in parts]
        assert torch.stack(shares, 1).flatten().tolist() == labels.tolist()


def test_fewer_images_than_a_batch_make_an_empty_epoch(folder: Path) -> None:
    batches = training(folder, COUNT + 1)
    assert len(batches) == 0
    assert list(batches.epoch(0)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_gone_is_one_line(folder: Path, workers: int) -> None:
    """Not the traceback of a loader's process."""
    (folder / "7.png").unlink()
    batches = FileEvaluation(files(folder, training=False), workers, 5)
    with pytest.raises(
        DataError, match=r"^7\.png: cannot be read any more \(FileNotFound"
    ) as caught:
        list(batches)
    assert "\n" not in str(caught.value)


class Deadly:
    """A reader whose process is killed, as the system does for want of memory."""

    def read(self, _: str) -> Image.Image:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def stamp(self, _: str) -> str:
        return ""


def test_a_process_that_is_killed_is_one_line() -> None:
    transform = transforms(SETTINGS, (3, 12, 12))[0]
    deadly = Files(["0.png"], [0], Deadly(), transform)
    with pytest.raises(DataError, match=r"^a process that decodes images died"):
        list(FileEvaluation(deadly, 1, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_stay(folder: Path, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(training(folder, 5, workers).epoch(0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_settings_reach_timm(folder: Path) -> None:
    still = AugmentSettings(scale=1.0, hflip=0.0)
    described = str(transforms(ImagesSettings(root="/x", augment=still), (3, 12, 12))[0])
    assert "scale=(1.0, 1.0)" in described
    assert "Flip" not in described
    assert "RandAugment" not in described
    moved = AugmentSettings(scale=0.5, hflip=0.25, rand_augment=3, magnitude=4, color_jitter=0.2)
    described = str(transforms(ImagesSettings(root="/x", augment=moved), (3, 12, 12))[0])
    assert "scale=(0.5, 1.0)" in described
    assert "RandomHorizontalFlip(p=0.25)" in described
    assert "n=3" in described
    evaluated = files(folder, training=False)[4]
    assert evaluated[0].shape == (3, 12, 12)
    assert torch.allclose(evaluated[0], torch.tensor(80 / 255))


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
    with pytest.raises(DataError, match=r"/dev/shm has too little here; set data.workers=0"):
        list(load([1, 2], 0))  # type: ignore[arg-type]


LEFT_BEHIND = """
import os, signal
from octnas.data.from_files import load
batches = load(list(range(1000)), 2)
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
