import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octnas import __version__
from octnas.config import shipped_experiments
from octnas.runtime.lock import held
from octnas.space.architecture import Architecture
from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT, TINY

COMMANDS = (
    *("run", "supernet", "search", "retrain", "report", "export", "architecture", "cost", "init"),
    "sync",
)


def test_help_names_every_command_and_waits_for_no_library() -> None:
    program = (
        "import sys; sys.argv = ['octnas', '--help']\n"
        "from octnas.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'mlflow', 'ray'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(octnas: Octnas) -> None:
    assert octnas("--version").out == f"octnas {__version__}\n"


def test_cost_as_json(octnas: Octnas) -> None:
    """DESIGN's table: ResNet-50 at α = .5 is 2.367 GMACs, 25.557 M parameters."""
    document = json.loads(octnas("cost", "resnet50", "--alpha", "0.5", "--json").out)
    assert round(document["macs"] / 1e9, 3) == 2.367
    assert round(document["params"] / 1e6, 3) == 25.557
    assert document["activation_bytes"] % 4 == 0
    assert len(document["sites"]) == 1 + 4 + 2 * 16
    assert sum(site["macs"] for site in document["sites"]) == document["macs"] - 2048 * 1000
    stem, last = document["sites"][0], document["sites"][-1]
    assert stem["low_channels"] == last["low_channels"] == 0
    assert document["architecture"]["alphas"]["layer1"] == 0.5


def test_cost_for_a_reader(octnas: Octnas) -> None:
    out = octnas("cost", "resnet50", "--alpha", "0.5", "--input-size", "320").out
    assert "MACs" in out
    assert "3×320×320" in out
    assert "32 of 64" in out


def test_cost_of_an_architecture_file(octnas: Octnas, tmp_path: Path) -> None:
    architecture = Architecture("resnet18", (3, 64, 64), {"layer1": 0.5}, channel_multiple=16)
    architecture.save(tmp_path / "a.json")
    result = octnas("cost", "--architecture", str(tmp_path / "a.json"), "--json")
    document = json.loads(result.out)
    sites = {site["name"]: site for site in document["sites"]}
    assert sites["layer1"]["low_channels"] == 32
    assert document["architecture"]["channel_multiple"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost"], "give either MODEL or --architecture"),
        (["cost", "resnet5"], "backbone: found 'resnet5', allowed: a model that timm knows"),
        (["cost", "vit_tiny_patch16_224"], "allowed: timm's ResNets"),
        (["cost", "resnet50_gn"], "bn1: found a GroupNorm, allowed: AvgPool2d"),
        (["cost", "--architecture", "missing.json"], "missing.json: no such file"),
        (["cost", "--architecture", "a.json", "--alpha", "0.5"], "need MODEL instead"),
        (["run", "missing.yaml"], "missing.yaml: cannot be read"),
        (["search", str(EXPERIMENT), "--fresh", "space"], "found 'space', allowed here: search"),
        (["init", "/proc/nowhere"], "/proc/nowhere: No such file or directory"),
        (["init", __file__], "test_commands.py: File exists"),
        (["run", str(EXPERIMENT), "--run-dir", __file__], "test_commands.py: File exists"),
        (["run", str(EXPERIMENT), "--run-dir", ""], "--run-dir: found '', allowed: a folder"),
        (["data", "--run-dir", "", "--fresh", "data"], "--run-dir: found '', allowed: a folder"),
        (["run", "."], "is not a run directory"),
        (["plan", "."], "is not a run directory"),
        (["slurm", ".", "--out", "jobs"], "is not a run directory"),
        (["sync", "."], "is not a run directory"),
        (["sync", "missing"], "missing: is not a run directory"),
        (["run", str(EXPERIMENT), "--set", "serch.trials=3"], "--set: serch: unknown key"),
        (["supernet", str(EXPERIMENT), "--processes", "0"], "supernet.processes: found 0"),
        (
            ["cost", "resnet18", "--input-size", "1" + 30 * "0"],
            "allowed: 1 to 65536",
        ),
        (
            ["search", str(EXPERIMENT), "--address", "auto", "--set", "ray.gpus=1.5"],
            "--set: ray.gpus: found 1.5, allowed: 0 to 1, or a whole number",
        ),
        (
            ["run", str(EXPERIMENT), "--set", "data.train_images=99999999999"],
            "--set: data.train_images: found 99999999999, allowed: 1 to 1000000",
        ),
        (
            ["run", str(EXPERIMENT), "--fresh", "all"],
            "--fresh: found 'all', allowed here: data, space",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    octnas: Octnas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = octnas(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("octnas: ")
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_memory_that_does_not_suffice_is_one_line(
    octnas: Octnas, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 23.3 TiB for an array")

    monkeypatch.setattr("octnas.nn.cost.cost", fail)
    result = octnas("cost", "resnet18")
    assert result.code == 2
    assert result.err.startswith("octnas: out of memory (Unable to ")
    assert "batch_size" in result.err
    assert len(result.err.splitlines()) == 1


def test_init_writes_what_is_shipped_and_keeps_what_is_there(
    octnas: Octnas, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    octnas("init", str(folder))
    names = {path.name for path in folder.iterdir()}
    assert {"digits.yaml", "tiny_imagenet.yaml", "resnet50.yaml"} <= names
    for source in shipped_experiments():
        assert (folder / source.name).read_bytes() == source.read_bytes()
    (folder / "digits.yaml").write_text("mine")
    assert "kept" in octnas("init", str(folder)).out
    assert (folder / "digits.yaml").read_text() == "mine"


def test_run_prints_where_to_look(
    octnas: Octnas, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    overrides = [part for override in TINY for part in ("--set", override)]
    result = octnas("run", str(EXPERIMENT), *overrides)
    assert result.code == 0
    assert "search: skipped" in result.out
    for path in ("report/index.html", "report/networks.csv", "export"):
        assert str(finished / "runs" / "tiny" / path) in result.out
    assert f"--backend-store-uri sqlite:///{finished}/runs/mlflow.db" in result.out


def test_sync_of_a_run_that_has_sent_everything(octnas: Octnas, finished: Path) -> None:
    result = octnas("sync", str(finished / "runs" / "tiny"))
    assert result.code == 0
    assert result.out == f"nothing to send to sqlite:///{finished}/runs/mlflow.db\n"


def test_digits_are_the_default(
    octnas: Octnas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "space: thumbnail_resnet" in octnas("data").out
    assert Path("runs/digits/data/stage.json").exists()


def test_report_is_written_anew(octnas: Octnas, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    page = tmp_path / "copy" / "runs" / "tiny" / "report" / "index.html"
    page.unlink()
    assert octnas("report", str(tmp_path / "copy" / "runs" / "tiny")).code == 0
    assert page.exists()


SECRET = "hunter2-secret"


def files_with_secret(folder: Path) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.slow
def test_a_password_is_in_no_file_and_no_output(
    octnas: Octnas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study's database is a SQLite file, whose URL may carry a password that it ignores."""
    monkeypatch.chdir(tmp_path)
    storage = f"sqlite:///file:{tmp_path}/study.db?uri=true&password={SECRET}"
    overrides = [part for override in TINY for part in ("--set", override)]
    url = ["--set", f"search.storage={storage}"]
    outputs = [octnas(stage, str(EXPERIMENT), *overrides, *url) for stage in ("supernet", "search")]
    outputs.append(octnas("report", str(EXPERIMENT), *overrides, *url))
    assert [result.code for result in outputs] == [0, 0, 0]
    assert (tmp_path / "study.db").exists()
    assert "password=***" in (tmp_path / "runs" / "tiny" / "config.yaml").read_text()
    dead = ["--set", f"tracking.uri=http://me:{SECRET}@127.0.0.1:9", "--fresh", "search"]
    outputs.append(octnas("search", str(EXPERIMENT), *overrides, *dead))
    assert "`octnas sync " in outputs[-1].out  # a server that is down is no mistake
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")
    outputs.append(octnas("sync", str(tmp_path / "runs" / "tiny")))
    assert outputs[-1].code == 2
    assert outputs[-1].err.startswith("octnas: tracking.uri: http://me:***@127.0.0.1:9: ")
    assert len(outputs[-1].err.splitlines()) == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    outputs.append(
        octnas(
            "search",
            str(EXPERIMENT),
            *overrides,
            "--set",
            f"search.storage=postgresql://me:{SECRET}@127.0.0.1:9/db",
            "--fresh",
            "search",
        )
    )
    assert [result.code for result in outputs[3:]] == [0, 2, 2]
    for result in outputs:
        assert SECRET not in result.out + result.err
        assert "Traceback" not in result.err
    assert files_with_secret(tmp_path) == []


@pytest.mark.slow
def test_a_left_out_password_must_be_given_again(
    octnas: Octnas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [part for override in TINY for part in ("--set", override)]
    url = f"search.storage=postgresql://me:{SECRET}@127.0.0.1:9/db"
    assert octnas("supernet", str(EXPERIMENT), *overrides, "--set", url).code == 0
    result = octnas("search", str(tmp_path / "runs" / "tiny"))
    assert result.code == 2
    assert "set the whole URL in the environment variable OCTNAS_STORAGE" in result.err
    monkeypatch.setenv("OCTNAS_STORAGE", f"sqlite:///{tmp_path}/study.db")
    assert octnas("search", str(tmp_path / "runs" / "tiny")).code == 0
    assert (tmp_path / "study.db").exists()
    dead = f"tracking.uri=http://me:{SECRET}@127.0.0.1:9"
    for arguments, code in ((["--set", dead], 0), (["--fresh", "retrain"], 2)):
        result = octnas("retrain", str(tmp_path / "runs" / "tiny"), *arguments)
        assert result.code == code
    assert "tracking.uri: found 'http://me:***@127.0.0.1:9'" in result.err
    assert "MLFLOW_TRACKING_URI" in result.err


def test_reports_of_a_run_and_of_several(octnas: Octnas, finished: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        shutil.copytree(finished, tmp_path / name)
    one, other = (str(tmp_path / name / "runs" / "tiny") for name in ("one", "other"))
    assert "the run is finished" in octnas("report", one, "--watch").out
    timing = ("latency", "networks", one, "--repeats", "4", "--name", "desk")
    with held(Path(one)):
        refused = octnas(*timing)
    assert refused.code == 2
    assert "is using this run" in refused.err
    assert not (Path(one) / "latency").exists()
    timed = octnas(*timing)
    assert timed.code == 0
    assert "desk-eager-float32-batch-1-threads-1.json" in timed.out
    assert octnas("report", one).code == 0
    assert "desk, eager" in (Path(one) / "report" / "index.html").read_text()
    page = tmp_path / "page.html"
    compared = octnas("compare", one, other, "--out", str(page))
    assert compared.code == 0
    assert "settings that differ: none" in compared.out
    assert page.exists()
    assert octnas("compare", one).err.startswith("octnas: octnas compare: give two or more")
    table = octnas("report", one, "--latency", str(tmp_path / "none.json"))
    assert (table.code, len(table.err.splitlines())) == (2, 1)
