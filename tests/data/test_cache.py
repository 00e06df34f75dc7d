"""A cache: filled by anyone, whole or missing, never wrong."""

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from octnas.data import cache as module
from octnas.data.cache import Cache
from octnas.data.prepare import build
from octnas.data.sources import FileReader
from octnas.errors import DataError
from octnas.runtime.progress import Quiet

COUNT = 40


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Forty images, of which one is broken."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(COUNT):
        pixels = rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "7.png").write_bytes(b"")
    return [f"{index}.png" for index in range(COUNT)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARD", 4)


def fill(folder: Path, names: list[str], root: Path, workers: int = 0) -> Cache:
    cache = Cache(folder, len(names), 16)
    build(cache, names, FileReader(root), workers=workers, progress=Quiet())
    return cache


def test_it_holds_every_image_and_every_reason(names: list[str], tmp_path: Path) -> None:
    cache = fill(tmp_path / "cache", names, tmp_path / "images")
    assert cache.missing() == []
    assert cache.pixels.shape == (COUNT, 16, 16, 3)
    # The shorter side of 18 to 16, and of the other the middle.
    with Image.open(tmp_path / "images" / "3.png") as image:
        expected = np.asarray(image.resize((17, 16), Image.Resampling.BILINEAR))[:, :16]
    assert np.array_equal(cache.pixels[3], expected)
    found = cache.found()
    assert found[7].reason == "not an image, or an unsupported format"
    assert not cache.pixels[7].any()
    assert len({one.digest for one in found}) == COUNT
    assert not list(cache.folder.glob("*.claim"))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_gone_on_with(names: list[str], tmp_path: Path, workers: int) -> None:
    whole = fill(tmp_path / "whole", names, tmp_path / "images")
    part = fill(tmp_path / "part", names, tmp_path / "images")
    shard = part.folder / "shard-000001.json"
    begun = (part.folder / "shard-000000.json").stat().st_mtime_ns
    shard.unlink()
    assert part.missing() == [1]
    fill(tmp_path / "part", names, tmp_path / "images", workers)
    assert (part.folder / "shard-000000.json").stat().st_mtime_ns == begun
    for name in ("pixels.u8", "shard-000001.json"):
        assert (part.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_truncated_shard_is_one_line(names: list[str], tmp_path: Path) -> None:
    cache = fill(tmp_path / "whole", names, tmp_path / "images")
    shard = cache.folder / "shard-000000.json"
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(DataError, match=r"shard-000000\.json: truncated, .* rebuilds it$"):
        cache.found()


def test_several_processes_make_one_cache(names: list[str], tmp_path: Path) -> None:
    whole = fill(tmp_path / "whole", names, tmp_path / "images")
    context = multiprocessing.get_context("fork")
    shared = tmp_path / "shared"
    processes = [
        context.Process(target=fill, args=(shared, names, tmp_path / "images")) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert Cache(shared, COUNT, 16).missing() == []
    assert (shared / "pixels.u8").read_bytes() == (whole.folder / "pixels.u8").read_bytes()


def test_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache", COUNT, 16)
    assert cache.claim(0)
    assert not cache.claim(0)  # this process is alive
    host = os.uname().nodename
    dead = multiprocessing.get_context("fork").Process()
    dead.start()
    dead.join()
    (cache.folder / "shard-000001.claim").symlink_to(f"{host} {dead.pid}")
    assert cache.claim(1)
    (cache.folder / "shard-000002.claim").symlink_to(f"elsewhere.{host} {dead.pid}")
    assert not cache.claim(2)
    monkeypatch.setattr(module, "_PATIENCE", -1.0)
    assert cache.claim(2)


def test_a_disk_that_is_too_small(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"needs 0.0 MB in .* which has 0.0 MB left"):
        fill(tmp_path / "cache", names, tmp_path / "images")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_full(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot be written to .*No space left on device"):
        fill(tmp_path / "cache", names, tmp_path / "images", workers)


@given(st.integers(1, 600))
def test_shards_begin_on_pages(resolution: int) -> None:
    cache = Cache(Path("/x"), 10_000, resolution)
    assert cache.shard_images * 3 * resolution**2 % 4096 == 0
    positions = [p for shard in range(cache.shards) for p in cache.positions(shard)]
    assert positions == list(range(10_000))


def test_without_pixels_only_what_is_known_is_kept(names: list[str], tmp_path: Path) -> None:
    cache = Cache(tmp_path / "checked", COUNT, 0)
    build(cache, names, FileReader(tmp_path / "images"), workers=0, progress=Quiet())
    assert (cache.folder / "pixels.u8").stat().st_size == 0
    other = fill(tmp_path / "cache", names, tmp_path / "images")
    assert cache.found() == other.found()


def test_a_cache_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = 4 * memory // (3 * 256**2)
    with (tmp_path / "pixels.u8").open("wb") as file:
        try:
            file.truncate(count * 3 * 256**2)
        except OSError as error:
            pytest.skip(f"no file of that size: {error}")
    assert not Cache(tmp_path, count, 256).pixels[-1].any()


@pytest.mark.parametrize("size", [0, 100, None])
def test_pixels_that_are_gone(names: list[str], tmp_path: Path, size: int | None) -> None:
    path = fill(tmp_path / "cache", names, tmp_path / "images").folder / "pixels.u8"
    path.unlink() if size is None else os.truncate(path, size)
    with pytest.raises(DataError, match=r"pixels.u8 is truncated or missing; remove "):
        fill(tmp_path / "cache", names, tmp_path / "images")
