"""What somebody else's files must not be able to do: remove, send or write what is not theirs."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from octnas.errors import ConfigError, OctnasError, SettingError
from octnas.io.yaml import parse_override, parse_yaml
from octnas.nn.backbone import create_backbone
from octnas.results.networks import Network
from octnas.tracking.outbox import Outbox

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


class Bomb:
    """Runs something when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (partial(Path.touch, self.mark), ())


def record(**changes: Any) -> bytes:
    """A line of an outbox."""
    known = {"schema": 1, "id": "0" * 32, "time": 1, "kind": "artifact", "key": "experiment"}
    return (json.dumps({**known, "path": "x.json", "folder": "", **changes}) + "\n").encode()


def test_an_outbox_sends_nothing_from_outside_of_its_run(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    run = tmp_path / "run"
    outbox = Outbox(run / "mlflow")
    outbox.open()
    (run / "link").symlink_to(secret)
    (run / "own.json").write_text("{}")
    for path in (str(secret), "../secret", "link"):
        outbox.path.write_bytes(record(path=path))
        (entry,) = outbox.entries()
        assert outbox.file(entry) is None, path
    outbox.path.write_bytes(record(path="own.json"))
    (entry,) = outbox.entries()
    assert outbox.file(entry) == run.resolve() / "own.json"


def test_what_was_kept_of_a_file_elsewhere_is_sent(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "table.json")
    outbox = Outbox(tmp_path / "run" / "mlflow")
    outbox.open()
    outbox.add("artifact", "experiment", tmp_path / "link.json", folder="")
    (entry,) = outbox.entries()
    found = outbox.file(entry)
    assert found is not None
    assert found.read_text() == "{}"


def test_the_role_of_a_network_is_no_path() -> None:
    from tests.export.trained import ARCHITECTURE

    good = {
        "role": "vanilla",
        "budget": "",
        "architecture": ARCHITECTURE.to_dict(),
        "cost": {"macs": 1, "params": 1, "activation_bytes": 1},
        "number": 0,
    }
    assert Network.from_dict(good).slug == "vanilla"
    with pytest.raises(ValueError, match=r"role: found '\.\.'"):
        Network.from_dict({**good, "role": ".."})


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", ".", ""])
def test_an_export_record_names_files_of_its_folder(name: str) -> None:
    from octnas.export.check import Comparison
    from octnas.export.record import Variant
    from octnas.export.settings import Tolerance

    good = Variant(
        "onnx", "fp32", ("m.onnx",), 1, None, Comparison(1, 0.0, 1.0, 1.0), Tolerance(1, 1), 1.0
    )
    assert Variant.from_dict(json.loads(json.dumps(asdict(good)))) == good
    with pytest.raises(ValueError, match="names within the folder"):
        Variant.from_dict(json.loads(json.dumps(asdict(replace(good, files=(name,))))))


def test_aliases_of_aliases_are_bounded() -> None:
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse_yaml(BOMB, "f.yaml")
    nested = "[&a [x,x], " + ", ".join(
        f"&{name} [*{before},*{before}]"
        for before, name in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
    )
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse_override(f"a={nested}]", parse_yaml("a: 1\n", "f.yaml"))


@pytest.mark.parametrize("text", ["a: \x01\n", 'a: "\\0"\n', 'a: "\\ud800"\n', "a: b\x00\n"])
def test_characters_that_no_file_holds(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_weights_with_code_in_them(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    torch.save({"conv1.weight": Bomb(mark)}, path)
    with pytest.raises(SettingError) as caught:
        create_backbone("resnet18", {}, weights=str(path))
    assert not mark.exists()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a\\b", "x" * 101])
def test_names_of_experiments_are_no_paths(name: str, tmp_path: Path) -> None:
    from octnas.config import default_experiment
    from tests.loading import load_config

    with pytest.raises(OctnasError, match="name"):
        load_config(default_experiment(), [f"name={json.dumps(name)}"])
