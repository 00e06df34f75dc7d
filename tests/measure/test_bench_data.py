"""What a benchmark of the data does and reports, with times that are given instead of measured."""

import functools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from octnas.data import sources
from octnas.data.cache import CachedImages
from octnas.data.from_files import FileImages
from octnas.data.images import AugmentedBatches
from octnas.data.settings import AugmentSettings, CacheSettings, ImagesSettings
from octnas.errors import DataError, MeasureError, SettingError
from octnas.measure import bench_data as module
from octnas.measure.bench_data import DataBenchResult, DataBenchSettings, bench_data
from octnas.nn.search_space import search_space
from octnas.runtime.progress import Quiet
from octnas.space.architecture import Architecture
from tests.data.trees import make_tree

# Seconds of a turn; that of the cache is eight times as long as the others.
SECONDS = {
    "cache": 0.8,
    "step from cache": 4.5,
    "step": 4.0,
    "files": 1.5,
    "step from files": 5.0,
}
SETTINGS = DataBenchSettings(batch_size=6, threads=1, batches=3, repeats=6)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("batch", {"batch_size": 1}),
        ("precision", {"precision": "int8"}),
        ("threads", {"threads": -1}),
        ("batches", {"batches": 0}),
        ("repeats", {"repeats": 5}),
    ],
)
def test_settings_out_of_range(key: str, change: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"^{key}: "):
        DataBenchSettings(**change)  # type: ignore[arg-type]


@pytest.fixture
def images(tmp_path: Path) -> ImagesSettings:
    """A tree of 14 training images of two classes."""
    root = make_tree(tmp_path / "tree")
    cache = CacheSettings(folder=str(tmp_path / "cache"))
    return ImagesSettings(
        root=str(root), search_val_per_class=3, read_per_class=2, workers=0, cache=cache
    )


@functools.cache
def network(classes: int) -> Architecture:
    args = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4], "num_classes": classes}
    space = search_space("thumbnail_resnet", (3, 16, 16), (0, 0.5), backbone_args=args)
    return space.uniform(0.0)


@pytest.fixture
def fixed_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything have one turn and take its time of the table."""

    def turns(
        functions: Mapping[str, Callable[[], None]], repeats: int, warm_up: int
    ) -> dict[str, np.ndarray]:
        assert functions.keys() == SECONDS.keys()
        assert (repeats, warm_up) == (SETTINGS.repeats, 1)
        for function in functions.values():
            function()
        # A median of 1, and a spread that is not 0.
        shape = np.array([1.0, 1.0, 0.5, 1.0, 2.0, 1.0])
        return {what: SECONDS[what] * shape for what in functions}

    monkeypatch.setattr(module, "interleave", turns)


def measured(images: ImagesSettings, settings: DataBenchSettings = SETTINGS) -> DataBenchResult:
    return bench_data(images, network, settings, Quiet())


@pytest.mark.usefixtures("fixed_times")
def test_figures_are_those_of_the_times(images: ImagesSettings) -> None:
    found = measured(images)
    shown = SETTINGS.batches * SETTINGS.batch_size
    assert {row.what: row.images_per_second for row in found.rows} == pytest.approx(
        {
            "files": shown / 1.5,
            "cache": 8 * shown / 0.8,
            "step": shown / 4.0,
            "step from files": shown / 5.0,
            "step from cache": shown / 4.5,
        }
    )
    assert found.speed_up.value == pytest.approx(15.0)
    assert found.held_back.value == pytest.approx(4.5 / 4.0)
    document = json.loads(json.dumps(found.to_dict()))
    assert document["schema"] == 1
    assert document["settings"]["batch_size"] == 6
    assert len(document["rows"]) == len(SECONDS)


@pytest.mark.usefixtures("fixed_times")
def test_turns_do_what_their_figures_say(
    images: ImagesSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every training step sees a whole batch of normalised images; loaders alone train nothing."""
    steps: list[tuple[torch.Size, torch.Size]] = []

    def sgd_step(*_: object) -> Callable[[Tensor, Tensor], None]:
        return lambda pixels, labels: steps.append((pixels.shape, labels.shape))

    monkeypatch.setattr(module, "sgd_step", sgd_step)
    measured(images)
    assert steps == [((6, 3, 16, 16), (6,))] * (3 * SETTINGS.batches)


@pytest.mark.usefixtures("fixed_times")
@pytest.mark.parametrize("enabled", [False, True])
def test_the_cache_is_built_by_one_look_at_every_image(
    images: ImagesSettings,
    monkeypatch: pytest.MonkeyPatch,
    enabled: bool,
) -> None:
    """Whether the experiment has one or not; what is read again is what the loader reads."""
    read, looks = sources.read_rgb, Counter[str]()

    def counted(source: Any) -> Image.Image:
        looks[str(source)] += 1
        return read(source)

    monkeypatch.setattr(sources, "read_rgb", counted)
    ways: dict[str, AugmentedBatches] = {}

    def turns(loaders: Mapping[str, AugmentedBatches], *_: object) -> dict[str, Any]:
        ways.update(loaders)
        return dict.fromkeys(SECONDS, lambda: None)

    monkeypatch.setattr(module, "_turns", turns)
    measured(replace(images, cache=replace(images.cache, enabled=enabled)))
    assert {what: type(way.images) for what, way in ways.items()} == {
        "files": FileImages,
        "cache": CachedImages,
    }
    assert len(looks) == 32
    assert set(looks.values()) == {1}
    assert len(list(Path(images.cache.folder).glob("*/pixels.u8"))) == 1
    measured(images)
    assert set(looks.values()) == {1}


@pytest.mark.usefixtures("fixed_times")
def test_mixed_images_can_be_trained_with(images: ImagesSettings) -> None:
    mixed = replace(images, augment=AugmentSettings(mixup=0.2, cutmix=1.0, rand_augment=1))
    assert measured(mixed).held_back.value > 0


@pytest.mark.usefixtures("fixed_times")
def test_the_network_has_the_classes_that_can_be_used(images: ImagesSettings) -> None:
    """Mixed labels have a share for each."""
    for path in Path(images.root, "val/red").iterdir():
        path.write_bytes(b"")
    left = replace(images, on_error="skip", augment=AugmentSettings(mixup=0.2))
    assert measured(left).held_back.value > 0


def test_it_can_be_measured(images: ImagesSettings) -> None:
    found = measured(images, replace(SETTINGS, batches=1))
    assert all(row.images_per_second > 0 and row.spread >= 0 for row in found.rows)
    assert found.held_back.low <= found.held_back.value <= found.held_back.high


@pytest.mark.usefixtures("fixed_times")
def test_the_list_of_what_is_broken_is_where_the_error_says(
    images: ImagesSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing else is left behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (Path(images.root) / "train/red/0.jpeg").write_bytes(b"")
    measured(replace(images, on_error="skip"))
    assert not list(temporary.iterdir())
    with pytest.raises(DataError, match=r"first: train/red/0\.jpeg") as caught:
        measured(images)
    (path,) = re.findall(r"listed in (\S+);", str(caught.value))
    assert Path(path).read_text().startswith('"train/red/0.jpeg": not an image')


def test_what_cannot_be_measured(images: ImagesSettings) -> None:
    with pytest.raises(MeasureError, match="batch: found 15, allowed: at most the 14 training"):
        measured(images, replace(SETTINGS, batch_size=15))
    with pytest.raises(SettingError, match="device: found 'moon'"):
        measured(images, replace(SETTINGS, device="moon"))
    cache = replace(images.cache, enabled=True)
    shards = replace(images, source="timm", name="wds/", cache=cache)
    with pytest.raises(MeasureError, match="'wds/', whose images are read from end to end"):
        measured(shards)
