"""``octnas latency`` as a user types it; no test looks at how long anything takes."""

import json
from pathlib import Path

import pytest

from octnas.pipeline import latency as latency_pipeline
from octnas.space.latency import LatencyTable
from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT
from tests.space.test_latency import small, table_of

SMALL = (
    *("latency", str(EXPERIMENT), "--repeats", "4", "--networks", "2", "--narrow", "2"),
    *("--fit", "4", "--set", "space.backbone_args.channels=[4, 8, 8]"),
    *("--set", "space.alphas=[0, 1]"),
)


def test_help_names_the_commands(octnas: Octnas) -> None:
    result = octnas("latency", "--help")
    assert result.code == 0
    assert "measure" in result.out
    assert "--backend" in octnas("latency", "measure", "--help").out


def test_a_table_is_printed_and_written(
    octnas: Octnas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object) -> LatencyTable:
        return table_of(small(), device="here")

    monkeypatch.setattr(latency_pipeline, "measure_table", made)
    out = tmp_path / "table.json"
    result = octnas(*SMALL, "--out", str(out))
    assert result.code == 0
    assert "here, eager, float32, batch 1, threads: 1" in result.out
    assert result.out.splitlines()[-1] == str(out)
    assert LatencyTable.from_dict(json.loads(out.read_text())) == made()


@pytest.mark.slow
def test_a_measured_table_is_of_the_experiment(octnas: Octnas, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    result = octnas(*SMALL, "--name", "some machine", "--out", str(out))
    if result.code == 2:
        assert "the machine is too noisy" in result.err
        return
    document = json.loads(out.read_text())
    assert (document["device"], document["batch"]) == ("some machine", 1)
    uses = [one["use"] for one in document["networks"]]
    assert uses.count("fit") == 4
    assert uses.count("check") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.yaml",), "nowhere.yaml: cannot be read"),
        ((str(EXPERIMENT), "--backend", "tvm"), "backend: found 'tvm', allowed: eager, compile"),
        ((str(EXPERIMENT), "--batch", "0"), "batch: found 0, allowed: 1 or more"),
        ((str(EXPERIMENT), "--repeats", "1"), "repeats: found 1, allowed: 4 or more"),
        ((str(EXPERIMENT), "--device", "nonsense"), "device: found 'nonsense'"),
        ((str(EXPERIMENT), "--device", "cuda:99"), "device: found 'cuda:99'"),
        ((str(EXPERIMENT), "--set", "space.alphas=3"), "space.alphas"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    octnas: Octnas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = octnas("latency", *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_answer_is_refused(octnas: Octnas, tmp_path: Path) -> None:
    for content in (None, "nonsense", "{}"):
        answer = tmp_path / "answer.json"
        if content is not None:
            answer.write_text(content)
        result = octnas("latency", "import", str(tmp_path), "--out", str(tmp_path / "table.json"))
        assert result.code == 2
        assert f"octnas: {answer}: " in result.err
        assert len(result.err.splitlines()) == 1
        assert not (tmp_path / "table.json").exists()
