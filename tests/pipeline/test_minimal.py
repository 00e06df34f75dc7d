"""Minimal experiments for folders of images."""

import os
from pathlib import Path

import pytest
from PIL import Image

from octnas.config import RunConfig
from octnas.data.settings import ImagesSettings
from octnas.errors import DataError
from octnas.pipeline.minimal import minimal_experiment
from octnas.pipeline.stages import run_stages
from octnas.runtime.progress import Quiet
from tests.data.trees import make_tree
from tests.loading import load_config
from tests.pipeline.tiny import open_unlocked


def images(root: Path, size: tuple[int, int], count: int = 40, val: str = "val") -> Path:
    """Two classes of black images of a size."""
    for split in ("train", val):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", size).save(root / split / name / f"{index}.png")
    return root


def config_of(root: Path, tmp_path: Path) -> RunConfig:
    found = minimal_experiment(root)
    assert len(found.text.splitlines()) <= 16
    path = tmp_path / "minimal.yaml"
    path.write_text(found.text)
    return load_config(path)


@pytest.mark.parametrize(
    ("size", "backbone", "side"),
    [
        ((500, 375), "resnet50", 224),
        ((130, 150), "resnet50", 128),
        ((64, 64), "thumbnail_resnet", 64),
        ((32, 40), "thumbnail_resnet", 32),
        ((5, 5), "thumbnail_resnet", 8),
    ],
)
def test_backbone_and_input_size_follow_the_images(
    tmp_path: Path, size: tuple[int, int], backbone: str, side: int
) -> None:
    config = config_of(images(tmp_path / "my images!", size, 12), tmp_path)
    assert config.name == "my-images-"
    assert config.space.backbone == backbone
    assert config.space.input_size == (3, side, side)
    assert isinstance(config.data, ImagesSettings)
    assert config.data.root == str(tmp_path / "my images!")
    assert config.data.search_val_per_class == 1
    assert config.space.channel_multiple == (8 if side > 64 else 1)
    assert config.search.threads == config.retrain.threads == min(16, len(os.sched_getaffinity(0)))


def test_a_relative_path_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = images(tmp_path / "images", (8, 8), 12)
    (tmp_path / "init").mkdir()
    monkeypatch.chdir(tmp_path / "init")
    found = minimal_experiment(Path("../images"))
    assert found.text.startswith(f"# {root}: 2 classes")
    assert f'  root: "{root}"' in found.text.splitlines()


def test_the_text_says_what_was_found(tmp_path: Path) -> None:
    root = images(tmp_path / "data", (20, 10), val="validation")
    found = minimal_experiment(root)
    assert "2 classes, 80 training and 80 validation images" in found.text
    assert "median size 20×10" in found.text
    config = config_of(root, tmp_path)
    assert isinstance(config.data, ImagesSettings)
    assert config.data.val == "validation"
    assert config.data.search_val_per_class == 4


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder with train/CLASS and val/CLASS"):
        minimal_experiment(tmp_path)
    with pytest.raises(DataError, match="found a class with 2 training images"):
        minimal_experiment(images(tmp_path / "few", (9, 9), 2))
    images(tmp_path / "data", (9, 9), 3)
    (tmp_path / "data" / "train" / "c").mkdir()
    assert minimal_experiment(tmp_path / "data").problems == ("train/c: a class without images",)


def test_a_minimal_experiment_runs(tmp_path: Path) -> None:
    path = tmp_path / "minimal.yaml"
    path.write_text(minimal_experiment(make_tree(tmp_path / "tree")).text)
    run = open_unlocked(
        path,
        overrides=["data.workers=0", "tracking.enabled=false"],
        run_dir=tmp_path / "run",
        progress=Quiet(),
    )
    run_stages(run, ("data", "space"))
    assert len(run.space.searchable) > 3
    assert len(run.budgets) == 2
