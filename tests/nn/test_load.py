"""Architecture files are refused before they are built as something else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import octnas
from octnas.errors import ArchitectureError, OctnasError
from octnas.nn import build
from octnas.nn.load import ARCHITECTURE_FILE, WEIGHTS_FILE, read_architecture
from octnas.space.architecture import Architecture
from tests.nn.reference import assert_sizeable, images, randomise

ARCHITECTURE = Architecture(
    "thumbnail_resnet", (3, 16, 16), {"layer1": 0.5}, backbone_args={"num_classes": 4}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = randomise(build(ARCHITECTURE, seed=1))
    ARCHITECTURE.save(tmp_path / ARCHITECTURE_FILE)
    save_file(model.state_dict(), tmp_path / WEIGHTS_FILE)
    return tmp_path


@pytest.mark.parametrize("kind", [str, Path])
def test_an_exported_folder_is_the_network(folder: Path, kind: type) -> None:
    state = torch.get_rng_state()
    model = octnas.load(kind(folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    x = images(2, 3, 16, 16)
    expected = randomise(build(ARCHITECTURE, seed=1)).eval()(x)
    assert_sizeable(expected)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", [ARCHITECTURE_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x00" * 64], ids=str)
def test_broken_files_are_named(folder: Path, name: str, content: bytes | None) -> None:
    path = folder / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ArchitectureError, match=name) as caught:
        octnas.load(folder)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_named(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArchitectureError, match=WEIGHTS_FILE):
        octnas.load(folder)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_of_another_network_are_refused(folder: Path, change: str) -> None:
    state = build(ARCHITECTURE, seed=1).state_dict()
    if change == "missing":
        del state["conv1.weight"]
    else:
        key = "conv9.weight" if change == "unexpected" else "conv1.weight"
        state[key] = torch.zeros(2, 2)
    save_file(state, folder / WEIGHTS_FILE)
    with pytest.raises(ArchitectureError, match="does not fit the architecture") as caught:
        octnas.load(folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_backbone_is_refused(folder: Path) -> None:
    Architecture("resnet5O", (3, 16, 16), {}).save(folder / ARCHITECTURE_FILE)
    with pytest.raises(OctnasError, match="resnet5O"):
        octnas.load(folder)


@pytest.mark.parametrize(
    ("key", "dtype"),
    [
        ("conv1.weight", torch.int8),
        ("conv1.weight", torch.bool),
        ("conv1.weight", torch.float8_e4m3fn),
        ("conv1.weight", torch.complex64),
        ("bn1.num_batches_tracked", torch.float32),
    ],
    ids=str,
)
def test_numbers_of_another_kind_are_refused(folder: Path, key: str, dtype: torch.dtype) -> None:
    state = load_file(folder / WEIGHTS_FILE)
    save_file(state | {key: state[key].to(dtype)}, folder / WEIGHTS_FILE)
    found = str(dtype).removeprefix("torch.")
    with pytest.raises(ArchitectureError, match=rf"{WEIGHTS_FILE}: {key}: found {found}, allowed"):
        octnas.load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_floats_of_other_widths_are_taken(folder: Path, dtype: torch.dtype) -> None:
    state = load_file(folder / WEIGHTS_FILE)
    other = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()
    }
    save_file(other, folder / WEIGHTS_FILE)
    found = octnas.load(folder).state_dict()
    assert all(torch.equal(found[key], value.to(found[key].dtype)) for key, value in other.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["conv1.weight", "bn1.running_var"])
def test_numbers_that_are_not_finite_are_refused(folder: Path, key: str, value: float) -> None:
    state = load_file(folder / WEIGHTS_FILE)
    state[key].view(-1)[-1] = value
    save_file(state, folder / WEIGHTS_FILE)
    with pytest.raises(ArchitectureError, match=f"{key}: not all values are finite"):
        octnas.load(folder)


DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "backbone": "resnet18",
    "backbone_args": {"num_classes": 5},
    "input_size": [3, 32, 32],
    "alphas": {"layer1": 0.5, "layer2": 0.0625},
    "channel_multiple": 8,
    "stride_mode": "paper",
}


def write(path: Path, **changed: Any) -> Path:
    file = path / "architecture.json"
    file.write_text(json.dumps({**DOCUMENT, **changed}))
    return file


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    file = write(tmp_path)
    assert read_architecture(file) == read_architecture(tmp_path)
    assert read_architecture(file) == Architecture.from_dict(DOCUMENT)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema": 2}, "architecture schema: found 2, allowed: 1"),
        ({"alphas": {"layer9": 0.5}}, "unknown sites layer9; allowed: stem, layer1"),
        (
            {"alphas": {"layer1": 0.3}},
            "α of site 'layer1': found 0.3, allowed: multiples of 8 of its 64 "
            "channels, such as 0.25 or 0.375",
        ),
        ({"alphas": {"layer1": 1.5}}, "α of site 'layer1': found 1.5, allowed: 0 to 1"),
        ({"backbone": "resnet5"}, "backbone: found 'resnet5', allowed: a model that timm knows"),
        ({"backbone_args": {"layerz": 3}}, "arguments of resnet18 "),
        ({"backbone": "resnet50_gn"}, "bn1: found a GroupNorm"),
        ({"more": 1}, "missing or unknown keys more"),
    ],
)
def test_one_clear_line(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    file = write(tmp_path, **changed)
    for read in (read_architecture, octnas.load):
        with pytest.raises(ArchitectureError) as caught:
            read(file if read is read_architecture else tmp_path)
        assert str(file) in str(caught.value)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_share_with_too_few_digits_is_a_channel_less(tmp_path: Path) -> None:
    """A third of 12 channels: what is built of 0.3333333 has three of them, and not four."""
    args = {"layers": [1, 1, 1], "channels": [12, 12, 12], "num_classes": 5}
    known = {"backbone": "thumbnail_resnet", "backbone_args": args, "channel_multiple": 1}
    file = write(tmp_path, alphas={"layer1": 0.3333333}, **known)
    with pytest.raises(ArchitectureError, match=r"such as 0.25 or 0.3333333333333333"):
        read_architecture(file)
    read_architecture(write(tmp_path, alphas={"layer1": 1 / 3}, **known))
