"""Architecture files are refused before they are built as something else."""

import json
from pathlib import Path
from typing import Any

import pytest

import octnas
from octnas.architecture import Architecture
from octnas.errors import ArchitectureError
from octnas.nn.reading import read_architecture

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
            "α of site 'layer1': found 0.3, off the grid, allowed: multiples of 8 of its 64 "
            "channels, such as 0.25 or 0.375",
        ),
        ({"alphas": {"layer1": 1.5}}, "α of site 'layer1': found 1.5, allowed: 0 to 1"),
        ({"backbone": "resnet5"}, "backbone: found 'resnet5', allowed: a model that timm knows"),
        ({"backbone_args": {"layerz": 3}}, "what resnet18 takes"),
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
