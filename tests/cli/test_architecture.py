"""``octnas architecture show|diff|validate``."""

import json
from pathlib import Path
from typing import Any

import pytest

from octnas.nn.search_space import search_space
from octnas.space.architecture import Architecture
from tests.cli.conftest import Octnas

ONE = Architecture("resnet18", (3, 32, 32), {"layer1": 0.5})
OTHER = Architecture("resnet18", (3, 32, 32), {"layer1": 0.5, "layer2": 0.25}, channel_multiple=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ONE.save(tmp_path / "one.json")
    OTHER.save(tmp_path / "other.json")
    (tmp_path / "exported").mkdir()
    ONE.save(tmp_path / "exported" / "architecture.json")
    document = {**ONE.to_dict(), "alphas": {"layer1": 0.3}}
    (tmp_path / "off.json").write_text(json.dumps(document))
    (tmp_path / "new.json").write_text(json.dumps({**ONE.to_dict(), "schema": 7}))
    return tmp_path


def test_show(octnas: Octnas, folder: Path) -> None:
    out = octnas("architecture", "show", str(folder / "exported"), str(folder / "other.json")).out
    assert f"architecture {ONE.id}" in out
    assert "32 of 64" in out
    assert "32 of 128" in out


def test_differences(octnas: Octnas, folder: Path) -> None:
    done = octnas("architecture", "diff", str(folder / "one.json"), str(folder / "other.json"))
    assert done.code == 1
    rows = [line for line in done.out.splitlines() if "│" in line]
    assert [row.split("│")[1].strip() for row in rows] == [
        *("channel_multiple", "α of layer2", "MACs", "share of vanilla", "activation bytes"),
    ]
    assert "0 (0/128)" in rows[1]
    assert "0.25 (32/128)" in rows[1]


def test_no_difference(octnas: Octnas, folder: Path) -> None:
    done = octnas("architecture", "diff", str(folder / "one.json"), str(folder / "exported"))
    assert (done.code, done.out) == (0, f"the same architecture: {ONE.id}\n")


def test_validate(octnas: Octnas, folder: Path) -> None:
    done = octnas("architecture", "validate", str(folder / "one.json"), str(folder / "exported"))
    assert done.code == 0
    assert done.out.count(ONE.id) == 2


def test_every_wrong_file_is_a_line(octnas: Octnas, folder: Path) -> None:
    names = ("off.json", "one.json", "new.json", "missing.json")
    done = octnas("architecture", "validate", *(str(folder / name) for name in names))
    assert done.code == 2
    assert done.out.splitlines() == [f"{folder / 'one.json'}: {ONE.id}, resnet18"]
    lines = done.err.splitlines()
    assert len(lines) == 3
    assert "off.json: α of site 'layer1': found 0.3, allowed: multiples of" in lines[0]
    assert "new.json: architecture schema: found 7, allowed: 1" in lines[1]
    assert "missing.json: no such file" in lines[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"layers": [1, 1]}, "backbone_args: found {'in_chans': 3, 'layers': [1, 1]}"),
        ({"checkpoint_path": "none.pth"}, "backbone_args.checkpoint_path: found 'none.pth'"),
    ],
)
def test_files_of_what_is_no_network(
    octnas: Octnas, tmp_path: Path, args: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.json"
    Architecture("resnet18", (3, 32, 32), {}, backbone_args=args).save(path)
    for command in ("show", "validate"):
        done = octnas("architecture", command, str(path))
        assert done.code == 2
        assert done.err.startswith(f"octnas: {path}: {message}")
        assert len(done.err.splitlines()) == 1


def test_against_a_search_space(octnas: Octnas, folder: Path) -> None:
    space = search_space("resnet18", (3, 32, 32), (0, 0.25), fixed={}, stride_mode="timm")
    (folder / "run" / "space").mkdir(parents=True)
    (folder / "run" / "space" / "space.json").write_text(json.dumps(space.to_dict()))
    good = space.architecture({"layer1": 0.25})
    good.save(folder / "good.json")
    files = [str(folder / name) for name in ("good.json", "one.json")]
    for where in ("run", "run/space/space.json"):
        done = octnas("architecture", "validate", *files, "--space", str(folder / where))
        assert done.code == 2
        assert good.id in done.out
        (line,) = done.err.splitlines()
        assert "α of site 'layer1': found 0.5, allowed in the search space: 0, 0.25" in line
    done = octnas("architecture", "validate", *files, "--space", str(folder / "missing.json"))
    assert "missing.json: no such file" in done.err
