"""The one look at every image: keys of caches, lists of what is broken, parts without copies.

Several processes that build one cache, some of which are killed.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from octnas.data import cache as module
from octnas.data import sources
from octnas.data.cache import Cache
from octnas.data.image_list import PARTS, SKIPPED, read_images, read_summary
from octnas.data.images import open_images
from octnas.data.prepare import CHECKED_FOLDER, PROBLEMS_FILE, build
from octnas.data.settings import AugmentSettings, CacheSettings, ImagesSettings, SubsetSettings
from octnas.errors import DataError
from octnas.runtime.progress import Quiet
from tests.data.trees import SIZE, looked, prepared


def touch(root: Path) -> None:
    path = root / "val/red/0.jpeg"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def lengthen(root: Path) -> None:
    path = root / "val/red/0.jpeg"
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rename(root: Path) -> None:
    (root / "train/red/0.jpeg").rename(root / "train/red/00.jpeg")


def remove(root: Path) -> None:
    (root / "train/blue/0.jpeg").unlink()


@pytest.mark.parametrize("change", [touch, lengthen, rename, remove])
def test_changed_files_give_a_new_key(
    own: ImagesSettings, root: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    before = looked(own, tmp_path / "data").key
    assert looked(own, tmp_path / "data").key == before
    change(root)
    assert looked(own, tmp_path / "data").key != before
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"subset": SubsetSettings(classes=("red",))}, False),
        ({"subset": SubsetSettings(fraction=0.9)}, False),
        ({"crop_pct": 0.8}, False),
        ({"search_val_per_class": 4, "read_per_class": 1}, True),
        ({"seed": 7}, True),
        ({"augment": AugmentSettings(scale=1.0), "mean": (0.5, 0.5, 0.5)}, True),
        ({"on_error": "skip", "workers": 1}, True),
    ],
)
def test_a_cache_is_shared_where_its_pixels_are_the_same(
    own: ImagesSettings, tmp_path: Path, changes: dict[str, Any], same: bool
) -> None:
    before = looked(own, tmp_path / "data").key
    assert (looked(replace(own, **changes), tmp_path / "other").key == before) is same


def test_another_resolution_is_another_cache(own: ImagesSettings, tmp_path: Path) -> None:
    sizes = [replace(own, cache=replace(own.cache, resolution=r)) for r in (16, 20)]
    sizes.append(replace(own, cache=CacheSettings()))
    assert len({looked(settings, tmp_path / "data").key for settings in sizes}) == 3
    assert looked(sizes[0], tmp_path / "data", (3, 12, 12)).key == looked(sizes[0], tmp_path).key


def broken_tree(root: Path) -> dict[str, str]:
    """What is wrong, by name, with a word of the reason."""
    good = (root / "train/red/0.jpeg").read_bytes()
    (root / "train/red/cut.jpeg").write_bytes(good[: len(good) // 2])
    (root / "train/red/empty.png").write_bytes(b"")
    (root / "val/blue/page.jpeg").write_text("<html>")
    Image.new("1", (9500, 9500)).save(root / "val/blue/bomb.png")
    (root / "train/red/gone.jpeg").symlink_to("nowhere")
    (root / "train/red/loop").symlink_to(root / "train")
    (root / "train/hollow").mkdir()
    (root / "val/other").mkdir()
    (root / "val/other/0.jpeg").write_bytes(good)
    return {
        "train/red/cut.jpeg": "OSError: ",
        "train/red/empty.png": "not an image",
        "val/blue/page.jpeg": "not an image",
        "val/blue/bomb.png": "bomb",
        "train/red/gone.jpeg": "No such file",
        "train/red/loop": "a symbolic link",
        "train/hollow": "without images",
        "val/other": "a class that train does not have",
    }


@pytest.mark.parametrize("enabled", [True, False])
def test_failing_lists_everything_in_one_error(
    own: ImagesSettings, root: Path, tmp_path: Path, enabled: bool
) -> None:
    wrong = broken_tree(root)
    settings = replace(own, cache=replace(own.cache, enabled=enabled))
    with pytest.raises(DataError) as caught:
        prepared(settings, tmp_path / "data")
    path = tmp_path / "data" / PROBLEMS_FILE
    assert "\n" not in str(caught.value)
    assert f"cannot be used: {len(wrong)}, the first: train/" in str(caught.value)
    assert str(path) in str(caught.value)
    lines = dict(line.split(": ", 1) for line in path.read_text().splitlines())
    assert lines.keys() == {f'"{name}"' for name in wrong}
    for name, word in wrong.items():
        assert word in lines[f'"{name}"']
    assert not (tmp_path / "data" / "images.tsv").exists()


@pytest.mark.parametrize("enabled", [True, False])
def test_skipping_counts_everything(
    own: ImagesSettings, root: Path, tmp_path: Path, enabled: bool
) -> None:
    wrong = broken_tree(root)
    settings = replace(own, on_error="skip", cache=replace(own.cache, enabled=enabled))
    data = prepared(settings, tmp_path / "data")
    summary = read_summary(data.folder)
    assert {problem.name for problem in summary.problems} == wrong.keys()
    counts = {"train": 14, "search_val": 6, "read": 4, "val": 8, "skipped": 5, "copy": 0}
    assert summary.counts == counts
    assert len((data.folder / PROBLEMS_FILE).read_text().splitlines()) == len(wrong)
    images = open_images(data, SIZE)
    for part in PARTS:
        shown = sum(len(labels) for _, labels in images.batches(part, 3))
        assert shown == images.count(part) == counts[part]


def test_what_was_mended_is_no_problem_any_more(
    own: ImagesSettings, root: Path, tmp_path: Path
) -> None:
    good = (root / "train/red/0.jpeg").read_bytes()
    (root / "train/red/0.jpeg").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be used: 1, the first: train/red/0\.jpeg"):
        prepared(own, tmp_path / "data")
    (root / "train/red/0.jpeg").write_bytes(good)
    data = prepared(own, tmp_path / "data")
    assert not (data.folder / PROBLEMS_FILE).exists()
    assert read_summary(data.folder).counts["train"] == 14


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_of_broken_images_alone_is_skipped_like_an_empty_one(
    own: ImagesSettings, root: Path, tmp_path: Path, split: str
) -> None:
    """Also its good images in the other split; the other classes are numbered anew."""
    for path in (root / split / "blue").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=f"first: blue: a class of which no {split} image can be"):
        prepared(own, tmp_path / "data")
    data = prepared(replace(own, on_error="skip"), tmp_path / "data")
    found = read_images(data.folder)
    assert found.classes == ("red",)
    assert len(found.problems) == 1 + len(list((root / split / "blue").iterdir()))
    counts = {"train": 7, "search_val": 3, "read": 2, "val": 4, "skipped": 16, "copy": 0}
    assert found.summary()["counts"] == counts
    assert {e.label for e in found.entries if e.part in PARTS} == {0}
    assert {e.label for e in found.entries if e.part == SKIPPED} == {-1}
    ((pixels, labels),) = open_images(data, SIZE).batches("val", 4)
    assert labels.tolist() == [0] * 4
    assert (pixels.mean((0, 2, 3)).argmax()) == 0  # red


def test_without_any_class_nothing_can_be_done(
    own: ImagesSettings, root: Path, tmp_path: Path
) -> None:
    for path in root.glob("val/*/*.jpeg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no class has images in both splits that can be used"):
        prepared(replace(own, on_error="skip"), tmp_path / "data")


@pytest.mark.parametrize("enabled", [True, False])
def test_a_reason_that_went_without_a_trace(
    own: ImagesSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    enabled: bool,
) -> None:
    """A file that could not be read for a while has the size and the time that it had."""
    own = replace(own, cache=replace(own.cache, enabled=enabled))
    read = sources.read_rgb

    def denied(source: Path) -> Image.Image:
        if source.name == "1.jpeg":
            raise sources.BrokenImageError("PermissionError")
        return read(source)

    with monkeypatch.context() as patched:
        patched.setattr(sources, "read_rgb", denied)
        with pytest.raises(DataError, match="cannot be used: 4"):
            prepared(own, tmp_path / "data")
    found = looked(own, tmp_path / "data")
    assert found.problems == ()
    apart = replace(own, cache=replace(own.cache, folder=str(tmp_path / "apart")))
    assert found == looked(apart, tmp_path / "other")
    pixels = [
        next(iter(open_images(prepared(one, tmp_path / "data"), SIZE).batches("val", 8)))[0]
        for one in (own, apart)
    ]
    assert (pixels[0] == pixels[1]).all()


def test_what_was_left_out_may_differ_elsewhere(
    own: ImagesSettings, root: Path, tmp_path: Path
) -> None:
    """A node that builds its own cache is asked for the images that are used, and no others."""
    good = (root / "train/red/0.jpeg").read_bytes()
    (root / "train/red/0.jpeg").write_bytes(b"")
    own = replace(own, on_error="skip")
    data = prepared(own, tmp_path / "data")
    (root / "train/red/0.jpeg").write_bytes(good)
    node = replace(own, cache=replace(own.cache, folder=str(tmp_path / "node")))
    assert open_images(replace(data, settings=node), SIZE).count("train") == 13


def test_the_list_does_not_depend_on_the_cache(own: ImagesSettings, tmp_path: Path) -> None:
    """Nor on how many processes look at the images."""
    plain = replace(own, cache=CacheSettings(), workers=2)
    with_cache, without = looked(own, tmp_path / "a"), looked(plain, tmp_path / "b")
    assert with_cache.entries == without.entries
    assert with_cache.digest == without.digest


def test_the_size_of_the_cache_is_said_before_it_is_refused(
    own: ImagesSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10_000

    monkeypatch.setattr("octnas.data.cache.shutil.disk_usage", lambda _: Usage)
    lines: list[str] = []
    with pytest.raises(DataError, match=r"needs 0\.0 MB in .* which has 0\.0 MB left"):
        prepared(own, tmp_path / "data", SIZE, lines)
    assert len(lines) == 1
    assert lines[0].startswith("data: 32 images at 18×18: a cache of 0.0 MB in ")
    assert not (tmp_path / "cache").exists()


def test_a_look_that_was_broken_off_is_gone_on_with(
    own: ImagesSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octnas.data.cache._SHARD", 8)
    own = replace(own, cache=CacheSettings())
    read, seen = sources.read_rgb, list[str]()

    def counted(source: Path) -> Image.Image:
        seen.append(str(source))
        if len(seen) == 20:
            raise KeyboardInterrupt
        return read(source)

    monkeypatch.setattr(sources, "read_rgb", counted)
    with pytest.raises(KeyboardInterrupt):
        prepared(own, tmp_path / "data")
    assert len(list((tmp_path / "data" / CHECKED_FOLDER).rglob("*.json"))) == 2
    prepared(own, tmp_path / "data")
    assert len(seen) == 20 + 32 - 16


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
