import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import octnas
from octnas.errors import ArchitectureError, ExportError
from octnas.export.timm_folder import write_timm
from octnas.nn import build
from octnas.space.architecture import Architecture
from tests.export.trained import ARCHITECTURE, CLASSES, randomised

DATA_CONFIG = {"mean": (0.1,), "std": (0.3,), "crop_pct": 1.0, "interpolation": "bilinear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export")
    save_file(randomised(ARCHITECTURE).state_dict(), path / "weights.safetensors")
    write_timm(
        ARCHITECTURE,
        path / "weights.safetensors",
        path / "network",
        class_names=CLASSES,
        data_config=DATA_CONFIG,
    )
    return path / "network"


def test_the_folder_holds_three_files(folder: Path) -> None:
    names = {"config.json", "model.safetensors", "architecture.json"}
    assert {entry.name for entry in folder.iterdir()} == names
    assert Architecture.load(folder / "architecture.json") == ARCHITECTURE


@torch.inference_mode()
def test_timm_and_octnas_load_the_source_network(folder: Path) -> None:
    images = torch.randn(4, 1, 16, 16)
    expected = randomised(ARCHITECTURE)(images)
    assert expected.abs().mean() > 1e-2
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(by_timm(images), expected)
    assert torch.equal(octnas.load(folder)(images), expected)


@torch.inference_mode()
def test_the_folder_has_the_layout_of_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folder's files instead of downloads."""
    from timm.models import _hub

    def download(repo_id: str, filename: str, **_: object) -> str:
        assert repo_id == "someone/network"
        return str(folder / filename)

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    network = timm.create_model("hf-hub:someone/network", pretrained=True).eval()
    images = torch.randn(4, 1, 16, 16)
    assert torch.equal(network(images), randomised(ARCHITECTURE)(images))


def test_the_config_has_the_preprocessing(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 16, 16)
    assert tuple(config["mean"]) == (0.1,)
    assert tuple(config["std"]) == (0.3,)
    assert config["crop_pct"] == 1.0
    assert model.pretrained_cfg["label_names"] == list(CLASSES)


def test_another_number_of_classes_keeps_the_features(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    weights = load_file(folder / "model.safetensors")
    assert model.fc.out_features == 3
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, weights[name])


def test_a_network_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    weights = {name: value * 0 for name, value in build(ARCHITECTURE, seed=0).state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ExportError, match="all but zero"):
        write_timm(
            ARCHITECTURE,
            tmp_path / "weights.safetensors",
            tmp_path / "network",
            class_names=CLASSES,
            data_config=DATA_CONFIG,
        )


@pytest.mark.parametrize("spoil", ["missing", "cut", "other", "no architecture"])
def test_damaged_folders_are_refused_in_one_line(folder: Path, tmp_path: Path, spoil: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("architecture.json", "model.safetensors"):
        (copy / name).write_bytes((folder / name).read_bytes())
    weights = copy / "model.safetensors"
    if spoil == "missing":
        weights.unlink()
    elif spoil == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif spoil == "other":
        document = json.loads((copy / "architecture.json").read_text())
        document["backbone_args"]["num_classes"] = 7
        (copy / "architecture.json").write_text(json.dumps(document))
    else:
        (copy / "architecture.json").write_text("{}")
    with pytest.raises(ArchitectureError) as caught:
        octnas.load(copy)
    assert str(copy) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
