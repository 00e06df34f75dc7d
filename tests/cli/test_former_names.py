"""Former names of settings, values and files, in run directories and on the command line."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from octnas.runtime.directory import WHOLE_RUN, digest
from octnas.settings import RENAMED, RENAMED_VALUES, rename_value, with_former_names
from octnas.space.architecture import Architecture
from tests.cli.conftest import Octnas

# Of the tiny run's stages, as the first release computed them.
DIGESTS = {
    "space": {"input.data": "04f6c69031c25bca"},
    "supernet": {"input.space": "0c189fdaa726f737"},
    "search": {"input.supernet": "f7cf990fc874db0c"},
    "retrain": {"input.search": "ea099b2a7a23b1a2"},
    "export": {"input.retrain": "d697c339389e16f3"},
}


@pytest.fixture
def former(finished: Path, tmp_path: Path) -> Path:
    """The finished tiny run as an earlier version left it."""
    shutil.copytree(finished, tmp_path / "former")
    path = tmp_path / "former" / "runs" / "tiny"
    config = yaml.safe_load((path / "config.yaml").read_text())
    for old, new in RENAMED.items():
        section, key = new.split(".")
        if key in config[section]:
            config[section][old.split(".")[1]] = config[section].pop(key)
    for key, names in RENAMED_VALUES.items():
        section, name = key.split(".")
        before = {new: old for old, new in names.items()}
        config[section][name] = rename_value(config[section][name], before)
    config["search"]["proxies"] = True
    config |= {"schema": 1, "proxies": {"epochs": 2}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    for marker in path.glob("*/stage.json"):
        document = json.loads(marker.read_text())
        document["fingerprint"] = with_former_names(document["fingerprint"])
        marker.write_text(json.dumps(document))
    add_removed_settings(path)
    for file in (path / "retrain" / "plan.json", path / "retrain" / "results.json"):
        file.write_text(file.read_text().replace('"increasing"', '"growing"'))
    images = path / "data" / "images.json"
    images.write_text(images.read_text().replace('"search_val"', '"rank"'))
    return path


def add_removed_settings(path: Path) -> None:
    """A search that zero-cost proxies took part in; later stages know it by its digest."""
    made = {
        stage: path / stage / "stage.json" for stage in ("search", "retrain", "export", "report")
    }
    documents = {stage: json.loads(marker.read_text()) for stage, marker in made.items()}
    prints = {stage: document["fingerprint"] for stage, document in documents.items()}
    prints["search"]["search.proxies"] = True
    prints["retrain"]["input.search"] = digest(prints["search"])
    for stage in ("export", "report"):
        prints[stage]["input.retrain"] = digest(prints["retrain"])
    for stage, marker in made.items():
        marker.write_text(json.dumps(documents[stage]))


def test_fingerprints_are_those_of_the_first_release(finished: Path) -> None:
    for stage, digests in DIGESTS.items():
        marker = finished / "runs" / "tiny" / stage / "stage.json"
        assert digests.items() <= json.loads(marker.read_text())["fingerprint"].items()


def test_a_former_run_is_finished_reported_and_exported(octnas: Octnas, former: Path) -> None:
    result = octnas("run", str(former))
    assert result.code == 0, result.err
    assert result.out.count(": skipped, finished") == len(WHOLE_RUN)
    assert "is now called" not in result.err  # octnas wrote that file
    assert octnas("report", str(former)).code == 0
    # Under the current name of the role.
    assert "increasing" in (former / "report" / "networks.csv").read_text()
    done = octnas("export", str(former), "--budget", "1x", "--out", str(former / "out"))
    assert done.code == 0, done.err


def test_a_former_export_is_written_in_its_place(
    octnas: Octnas, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "former")
    path = tmp_path / "former" / "runs" / "tiny"
    (now,) = (path / "export").glob("increasing-uniform-0.5")
    now.rename(now.with_name("growing-uniform-0.5"))
    network = json.loads((now.with_name("growing-uniform-0.5") / "architecture.json").read_text())
    identity = Architecture.from_dict(network).id
    done = octnas("export", str(path), "--architecture", identity, "--to", "timm")
    assert done.code == 0, done.err
    assert "growing-uniform-0.5" in done.out
    assert not now.exists()


def test_a_former_name_is_named_once(octnas: Octnas, former: Path) -> None:
    result = octnas("run", str(former), "--set", "supernet.by_role=false")
    assert result.code == 2
    first, second = result.err.splitlines()
    assert first == "octnas: --set: supernet.by_role is now called supernet.switchable"
    assert "supernet.switchable: was True, now False" in second
