"""Reports of finished and unfinished runs, and comparisons."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octnas.data.settings import CacheSettings, ImagesSettings
from octnas.errors import RunDirectoryError
from octnas.io.files import read_json, write_json
from octnas.measure.settings import LatencySettings
from octnas.pipeline.network_latency import time_retrained
from octnas.pipeline.records import read_candidates
from octnas.pipeline.report import (
    compare_runs,
    effects_of_sites,
    gather,
    recipe_digest,
    write_if_ready,
)
from octnas.pipeline.run import look_at_run, where
from octnas.results.front import Candidate
from tests.pipeline.tiny import open_tiny


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The run directory of a copy of the finished run."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "tiny"


def unfinish(path: Path, *stages: str) -> None:
    for stage in stages:
        marker = read_json(path / stage / "stage.json")
        write_json(path / stage / "stage.json", {**marker, "finished": None})


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.parent.name != "report"
    }


def test_a_finished_run_is_gathered_whole(finished: Path) -> None:
    run = look_at_run(finished / "runs" / "tiny")
    data = gather(run)
    assert data.unfinished == {}
    assert set(data.effects) == {site.name for site in run.space.searchable}
    ids = {one.network.architecture.id for one in data.retrained}
    assert set(data.by_class) == set(data.correct) == ids
    for identity in ids:
        assert data.by_class[identity].shape == (10,)
        assert 0 <= data.by_class[identity].min() <= data.by_class[identity].max() <= 1
    one = data.retrained[0]
    mean = data.correct[one.network.architecture.id].mean()
    assert mean == pytest.approx(one.mean("val_top1"))
    assert list(data.times) == ["data", "supernet", "search", "retrain", "export"]
    assert {name for name, time in data.times.items() if time.hours is None} == {"data", "export"}
    assert data.times["supernet"].what == "1 process of 1 CPU thread"
    assert data.digest == read_json(run.data.folder / "images.json")["digest"]
    assert "optuna-dashboard" in data.links["Optuna’s dashboard"]
    assert "mlflow.db" in data.links["MLflow"]


def test_a_report_has_all_its_files(finished: Path) -> None:
    folder = finished / "runs" / "tiny" / "report"
    names = {path.name for path in folder.iterdir()}
    assert {"index.html", "networks.csv", "front.csv", "front.json", "report.md"} <= names
    assert json.loads((folder / "front.json").read_text())["schema"] == 1
    assert "octnas report RUN --png" in (folder / "report.md").read_text()


def test_watching_a_run_changes_nothing(copied: Path) -> None:
    unfinish(copied, "search", "retrain", "export")
    (copied / "search" / "candidates.json").unlink()
    (copied / "search" / "chosen.json").unlink()
    (copied / "retrain" / "results.json").unlink()
    gone = sorted((copied / "retrain").glob("*/seed-1"))
    for folder in gone[1:]:
        shutil.rmtree(folder)
    # As a process that is writing leaves it for a moment.
    with (copied / "search" / "study.journal").open("a") as file:
        file.write('{"op_code": 8, "wor')
    before = contents(copied)
    said, over = write_if_ready(copied, (), (), 7)
    assert not over
    assert "written every 7 s" in said
    assert contents(copied) == before
    page = (copied / "report" / "index.html").read_text()
    assert '<meta http-equiv="refresh" content="7">' in page
    assert "Not finished: search has begun; retrain has begun" in page
    data = gather(look_at_run(copied))
    assert len(data.candidates) > 10
    assert sorted({len(one.runs) for one in data.retrained}) == [1, 2]
    assert set(data.chosen) == {budget.name for budget in data.budgets}


def test_candidates_so_far_are_those_of_the_end(copied: Path) -> None:
    whole = read_candidates(look_at_run(copied))
    unfinish(copied, "search")
    (copied / "search" / "candidates.json").unlink()
    so_far = gather(look_at_run(copied)).candidates
    assert [(one.id, one.loss, one.trial) for one in so_far] == [
        (one.id, one.loss, one.trial) for one in whole
    ]


def test_a_search_killed_at_its_start_has_no_candidates(copied: Path) -> None:
    unfinish(copied, "search")
    (copied / "search" / "study.json").unlink()
    assert not gather(look_at_run(copied)).candidates


def test_waiting_and_the_end(copied: Path, tmp_path: Path) -> None:
    assert write_if_ready(tmp_path / "none", (), (), 5) == (
        f"{tmp_path / 'none'}: waiting for the run to begin",
        False,
    )
    said, over = write_if_ready(copied, (), (), 5)
    assert over
    assert said.endswith("the run is finished")
    assert 'http-equiv="refresh"' not in (copied / "report" / "index.html").read_text()
    unfinish(copied, "space")
    assert "waiting for its search space" in write_if_ready(copied, (), (), 5)[0]
    assert where(copied, (), None) == copied
    assert where(None, (), tmp_path) == tmp_path
    assert where(None, ("name=other",), None) == Path("runs/other")


def test_effects_recover_those_of_a_formula(finished: Path) -> None:
    """Losses that a formula gives: each unit of the stem's α costs a factor, the rest nothing."""
    run = look_at_run(finished / "runs" / "tiny")
    space, rng = run.space, np.random.default_rng(0)
    candidates = []
    for number in range(80):
        alphas = space.quantize(
            {site.name: float(rng.choice(site.choices)) for site in space.searchable}
        )
        macs = space.cost(alphas).macs
        loss = float(np.exp(0.3 * alphas["stem"] + rng.normal(scale=1e-3)))
        candidates.append(Candidate(str(number), alphas, macs, loss))
    found = effects_of_sites(space, candidates)
    stem = 100 * (np.exp(0.3 * (space.site["stem"].choices[-1])) - 1)
    assert found["stem"].percent == pytest.approx(stem, abs=1.5)
    assert all(abs(one.percent) < 1.5 for name, one in found.items() if name != "stem")
    assert all(one.std > 0 for one in found.values())
    assert effects_of_sites(space, candidates[:9]) == {}


def test_measured_networks_are_in_the_report(copied: Path) -> None:
    run = look_at_run(copied)
    settings = LatencySettings(name="desk", repeats=4)
    path, found = time_retrained(run, settings)
    assert path == copied / "latency" / "desk-eager-float32-batch-1-threads-1.json"
    data = gather(look_at_run(copied))
    assert data.latencies == (found,)
    assert set(found.measured) == {one.network.architecture.id for one in data.retrained}
    for timing in found.measured.values():
        assert timing.p95 is not None
        assert 0 < timing.median <= timing.p95
    time_retrained(run, LatencySettings(name="desk", repeats=4, batch=2))
    assert [one.batch for one in gather(look_at_run(copied)).latencies] == [1, 2]


def test_impossible_times_are_one_line(copied: Path) -> None:
    path, _ = time_retrained(look_at_run(copied), LatencySettings(name="desk", repeats=4))
    document = read_json(path)
    [identity, *_] = document["networks"]
    for what in ("median", "p95"):
        for seconds in (float("nan"), float("inf"), -0.001, 0.0, 1e308):
            changed = {identity: {**document["networks"][identity], what: seconds}}
            write_json(path, {**document, "networks": {**document["networks"], **changed}})
            with pytest.raises(RunDirectoryError) as caught:
                gather(look_at_run(copied))
            said = f"{path}: {what}: found {seconds},"
            assert str(caught.value).startswith(said)
            assert "\n" not in str(caught.value)


def test_nothing_to_measure(copied: Path) -> None:
    unfinish(copied, "retrain")
    shutil.rmtree(copied / "retrain")
    with pytest.raises(RunDirectoryError, match="no network is retrained yet"):
        time_retrained(look_at_run(copied), LatencySettings(repeats=4))


def test_the_gpu_of_a_run_is_named(copied: Path) -> None:
    """Also when the report is written elsewhere, and for runs that did not record devices."""
    record = read_json(copied / "run.json")
    first = record["runs"][0]
    assert first.pop("device") == ("cuda" if torch.cuda.is_available() else "cpu")
    cases = ((["cuda", "cpu"], "1 process on cuda"), ([None], "1 process of 1 CPU thread"))
    for devices, words in cases:
        runs = [first | ({"device": device} if device else {}) for device in devices]
        write_json(copied / "run.json", {**record, "runs": runs})
        data = gather(look_at_run(copied))
        assert data.times["supernet"].what == words
        assert data.facts["Device"] == devices[0] or devices == [None]


@pytest.mark.parametrize(
    "change", [{"crop_pct": 0.5}, {"mean": (0.1,) * 3}, {"cache": CacheSettings(enabled=True)}]
)
def test_other_images_of_the_same_files_are_another_recipe(
    finished: Path, change: dict[str, Any]
) -> None:
    run = look_at_run(finished / "runs" / "tiny")

    def digest(data: ImagesSettings) -> str:
        return recipe_digest(replace(run, config=replace(run.config, data=data)))

    data = ImagesSettings(source="folder", root="x")
    assert digest(replace(data, **change)) != digest(data)
    assert digest(replace(data, workers=7)) == digest(data)


def test_runs_are_compared(finished: Path, copied: Path, tmp_path: Path) -> None:
    own = finished / "runs" / "tiny"
    rows, differing = compare_runs([own, copied], tmp_path / "page.html")
    # The same run twice: one group, and no difference at all.
    assert {row[1] for row in rows} == {"1"}
    assert [row[3].partition(" (")[0] for row in rows] == [
        "first",
        "no difference to the first beyond the noise",
    ]
    assert differing == {}
    assert "<html" in (tmp_path / "page.html").read_text()
    with pytest.raises(RunDirectoryError, match="two or more different"):
        compare_runs([own, own], tmp_path / "page.html")
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        compare_runs([own, tmp_path / "none"], tmp_path / "page.html")


def test_another_recipe_is_not_ranked(finished: Path, copied: Path, tmp_path: Path) -> None:
    text = (copied / "config.yaml").read_text()
    assert "label_smoothing: 0.0" in text
    (copied / "config.yaml").write_text(
        text.replace("label_smoothing: 0.0", "label_smoothing: 0.1")
    )
    for stage in ("supernet", "search", "retrain", "export", "report"):
        shutil.rmtree(copied / stage)
    rows, differing = compare_runs([finished / "runs" / "tiny", copied], tmp_path / "page.html")
    assert sorted(row[1] for row in rows) == ["1", "2"]
    assert all(row[3].startswith("not ranked") for row in rows)
    assert "retrain.recipe.label_smoothing" in differing


def test_a_report_before_the_search(copied: Path) -> None:
    for stage in ("search", "retrain", "export"):
        shutil.rmtree(copied / stage)
    data = gather(open_tiny(copied.parents[1]))
    assert (data.candidates, data.retrained, data.chosen) == ((), (), {})
    assert data.unfinished["search"] == "has not begun"
