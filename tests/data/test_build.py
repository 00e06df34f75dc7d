"""Several processes that build one cache, some of which are killed."""

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from octnas.data import cache as module
from octnas.data.build import build
from octnas.data.cache import Cache
from octnas.errors import DataError
from octnas.progress import Quiet

COUNT, SIDE = 64, 16
NAMES = [str(index) for index in range(COUNT)]
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Slow:
    """A reader that takes its time and notes what it was asked for."""

    log: Path
    seconds: float = 0.002

    def read(self, name: str) -> Image.Image:
        time.sleep(self.seconds)
        with self.log.open("a") as file:
            file.write(f"{name}\n")
        rng = np.random.default_rng(int(name))
        return Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))

    def stamp(self, _: str) -> str:
        return ""

    def asked(self) -> list[str]:
        return self.log.read_text().split()


class Counted(Quiet):
    """A bar that adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.steps.append(steps)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARD", 16)


def fill(folder: Path, reader: Slow, workers: int = 0, names: list[str] = NAMES) -> Cache:
    cache = Cache(folder, len(names), SIDE)
    build(cache, names, reader, workers=workers, progress=Quiet())
    return cache


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for_a_shard(folder: Path) -> None:
    end = time.monotonic() + 60
    while not list(folder.glob("shard-*.json")):
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_killed_is_gone_on_with(tmp_path: Path, workers: int) -> None:
    """The result is that of a build which nobody disturbed, byte for byte."""
    slow = Slow(tmp_path / "first", seconds=0.01)
    names = [str(index) for index in range(160)]
    process = FORK.Process(target=fill, args=(tmp_path / "cache", slow, workers, names))
    process.start()
    wait_for_a_shard(tmp_path / "cache")
    process.kill()
    process.join()
    missing = Cache(tmp_path / "cache", len(names), SIDE).missing()
    assert 0 < len(missing) < 10
    fast = Slow(tmp_path / "second", seconds=0)
    fill(tmp_path / "cache", fast, names=names)
    # Processes of a loader that lost their parent may still finish what they have claimed.
    assert len(fast.asked()) <= 16 * len(missing)
    whole = fill(tmp_path / "whole", Slow(tmp_path / "third", seconds=0), names=names)
    assert contents(tmp_path / "cache") == contents(whole.folder)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_work(tmp_path: Path, count: int) -> None:
    slow = Slow(tmp_path / "log")
    processes = [FORK.Process(target=fill, args=(tmp_path / "cache", slow)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert set(slow.asked()) == set(NAMES)
    assert len(slow.asked()) <= 1.5 * COUNT
    whole = fill(tmp_path / "whole", Slow(tmp_path / "other"))
    assert contents(tmp_path / "cache") == contents(whole.folder)


def test_a_live_claim_is_waited_for(tmp_path: Path) -> None:
    """And what its owner does is not done again, nor counted twice."""
    slow = Slow(tmp_path / "slow", seconds=0.02)
    other = FORK.Process(target=fill, args=(tmp_path / "cache", slow, 0, NAMES[:16]))
    other.start()
    end = time.monotonic() + 60
    while not (tmp_path / "cache" / "shard-000000.claim").is_symlink():
        assert time.monotonic() < end
    fast, bar = Slow(tmp_path / "fast", seconds=0), Counted()
    cache = Cache(tmp_path / "cache", COUNT, SIDE)
    build(cache, NAMES, fast, workers=0, progress=bar)
    other.join()
    assert sorted(fast.asked()) == sorted(NAMES[16:])
    assert sum(bar.steps) == cache.shards
    assert cache.missing() == []


def test_a_failure_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same process can go on at once when there is room again."""

    def full(*_: object) -> None:
        raise OSError("full")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", full)
        with pytest.raises(DataError, match=r"written to \(full\); what is there is kept"):
            fill(tmp_path / "cache", Slow(tmp_path / "log"))
    assert not list((tmp_path / "cache").glob("*.claim"))
    assert fill(tmp_path / "cache", Slow(tmp_path / "log")).missing() == []


def test_a_cache_is_made_where_links_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("no links on this file system")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    assert fill(tmp_path / "cache", Slow(tmp_path / "log")).missing() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_where_the_cache_should_be(tmp_path: Path, workers: int) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataError, match=r"data\.cache: .*cannot be written to") as caught:
        fill(tmp_path / "cache" / "key", Slow(tmp_path / "log"), workers)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Deadly(Slow):
    """A reader whose process dies of an image."""

    def read(self, name: str) -> Image.Image:
        if name == "40":
            os._exit(1)
        return super().read(name)


def test_a_process_that_dies_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a process that decodes images died"):
        fill(tmp_path / "cache", Deadly(tmp_path / "log"), workers=1)
    fill(tmp_path / "cache", Slow(tmp_path / "log"))
    whole = fill(tmp_path / "whole", Slow(tmp_path / "other"))
    assert contents(tmp_path / "cache") == contents(whole.folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_stay(tmp_path: Path, workers: int) -> None:
    before = torch.get_rng_state()
    fill(tmp_path / "cache", Slow(tmp_path / "log"), workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_open_files_do_not_grow_with_shards(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    cache = fill(tmp_path / "cache", Slow(tmp_path / "log"))
    assert cache.shards == 4
    assert cache.pixels.shape == (COUNT, SIDE, SIDE, 3)
    assert len(cache.found()) == COUNT
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
