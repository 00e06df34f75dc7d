import json
import shutil
from pathlib import Path

import pytest
import timm
import torch

import octnas
import octnas.pipeline.supernet as module
from octnas.errors import ConfigError, RunDirectoryError, SearchError
from octnas.io.files import read_json, write_json
from octnas.pipeline.records import read_candidates, read_chosen, read_results
from octnas.pipeline.run import locked
from octnas.pipeline.stages import rewrite_report, run_stages
from octnas.results.front import Front, best_under
from octnas.results.networks import INCREASING, SEARCHED, UNIFORM, VANILLA
from octnas.runtime.directory import WHOLE_RUN
from octnas.runtime.progress import Quiet
from octnas.search.surrogate import EXPECTED
from tests.loading import load_config
from tests.pipeline.tiny import BRIEF, OFF, open_tiny, open_unlocked


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_stage_is_finished(finished: Path) -> None:
    run = open_tiny(finished)
    assert all(run.directory.finished(stage) for stage in WHOLE_RUN)


def test_candidates_front_and_choice_fit_together(finished: Path) -> None:
    run = open_tiny(finished)
    candidates = read_candidates(run)
    assert 10 < len(candidates) <= 20
    assert len({candidate.id for candidate in candidates}) == len(candidates)
    for candidate in candidates:
        assert candidate.id == run.space.architecture(candidate.alphas).id
        assert candidate.macs == run.space.cost(candidate.alphas).macs
    chosen = read_chosen(run)
    assert list(chosen) == [budget.name for budget in run.budgets]
    for budget in run.budgets:
        best = best_under(candidates, budget, EXPECTED)
        assert best is not None
        assert chosen[budget.name].id == best.id
        assert chosen[budget.name].metrics["read_loss"] != best.loss
        assert best.macs <= budget.max_macs
    assert len(Front.of(candidates).candidates) > 1


def test_every_network_is_retrained_with_every_seed(finished: Path) -> None:
    run = open_tiny(finished)
    results = read_results(run)
    roles = [(result.network.role, result.network.budget) for result in results]
    names = [budget.name for budget in run.budgets]
    by_budget = [(role, name) for name in names for role in (SEARCHED, UNIFORM, INCREASING)]
    assert roles == [*by_budget, (VANILLA, "")]
    for result in results:
        assert [found.seed for found in result.runs] == [0, 1]
        assert all(0 <= value <= 1 for value in result.values("val_top1"))
        assert all(len(found.history) == 2 for found in result.runs)
    costs = {(r.network.role, r.network.budget): r.network.cost.macs for r in results}
    for name in names:
        assert costs[SEARCHED, name] <= costs[UNIFORM, name]
        assert costs[SEARCHED, name] <= costs[INCREASING, name]


def test_every_network_is_exported_and_loads(finished: Path) -> None:
    run = open_tiny(finished)
    folders = sorted((finished / "runs" / "tiny" / "export").glob("*/"))
    assert len(folders) == len(read_results(run)) == 7
    for folder in folders:
        by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = torch.ones(1, 1, 16, 16)
        assert torch.equal(by_timm(images), octnas.load(folder)(images))


def test_the_report_is_one_page_and_a_table(finished: Path) -> None:
    folder = finished / "runs" / "tiny" / "report"
    assert "<html" in (folder / "index.html").read_text()
    lines = (folder / "networks.csv").read_text().splitlines()
    assert len(lines) == 1 + 7


def test_settings_versions_seeds_and_overrides_are_recorded(finished: Path) -> None:
    directory = finished / "runs" / "tiny"
    record = json.loads((directory / "run.json").read_text())
    first = record["runs"][0]
    assert first["seed"] == 0
    assert first["retrain_seeds"] == [0, 1]
    assert "search.trials=20" in first["overrides"]
    assert first["versions"]["torch"] == torch.__version__.split("+")[0]
    config = load_config(directory / "config.yaml")
    assert config.search.trials == 20


def test_a_second_run_skips_everything_and_says_why(finished: Path) -> None:
    lines: list[str] = []
    run_stages(open_tiny(finished, lines=lines))
    assert len(lines) == len(WHOLE_RUN)
    assert all("skipped, finished 20" in line for line in lines)


def test_a_run_directory_can_be_opened_by_itself(finished: Path) -> None:
    lines: list[str] = []
    run = open_unlocked(finished / "runs" / "tiny", progress=Quiet(lines.append))
    run_stages(run)
    assert all("skipped" in line for line in lines)


def test_how_a_result_is_computed_may_change(finished: Path) -> None:
    open_tiny(finished, "retrain.workers=2", "search.executor=ray", "device=cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("supernet.macs=[0, 0.1]",), r"supernet\.macs: found \(0\.0, 0\.1\), allowed: a range"),
        (
            ("supernet.sampling=learnable", "space.alphas=[0.5]"),
            r"supernet\.sampling: found 'learnable', allowed: another sampling, or",
        ),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_what_no_training_can_begin_with_is_one_line_and_can_be_mended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    wrong: tuple[str, ...],
    message: str,
) -> None:
    """Also by several processes, each of which would find it out and be started again."""
    monkeypatch.setattr(module, "launch", lambda *_, **__: pytest.fail("processes were started"))
    run = open_tiny(tmp_path, "tracking.enabled=false", f"supernet.processes={processes}", *wrong)
    with pytest.raises(ConfigError, match=message) as caught:
        run_stages(run, ("supernet",))
    assert len(str(caught.value).splitlines()) == 1
    assert run.directory.marker("supernet") is None


@pytest.mark.parametrize(
    ("override", "stage", "key"),
    [
        ("space.alphas=[0, 1]", "space", "space.alphas: was [0.0, 0.5, 1.0], now [0.0, 1.0]"),
        ("data.seed=5", "data", "data.seed: was 0, now 5"),
        ("supernet.recipe.lr=0.2", "supernet", "supernet.recipe.lr: was 0.1, now 0.2"),
        ("seed=1", "supernet", "seed: was 0, now 1"),
        ("search.trials=21", "search", "search.trials: was 20, now 21"),
        ("retrain.seeds=[0]", "retrain", "retrain.seeds: was [0, 1], now [0]"),
    ],
)
def test_an_edited_setting_never_returns_stale_results(
    finished: Path, override: str, stage: str, key: str
) -> None:
    with pytest.raises(RunDirectoryError) as caught:
        open_tiny(finished, override)
    assert key in str(caught.value)
    assert f"--fresh {stage}" in str(caught.value)


@pytest.mark.parametrize("name", ["search/ray/.tune.draft-x5mr", ".forgotten-export-6ba5"])
def test_the_folders_of_killed_processes_go(copied: Path, name: str) -> None:
    """Of Tune, and of --fresh."""
    left = copied / "runs" / "tiny" / name
    (left / "run").mkdir(parents=True)
    (left / "run" / "search_gen_state-1.json").write_bytes(b"\x80")
    with locked(copied / "runs" / "tiny", lambda _: None):
        assert not left.exists()


@pytest.mark.slow
def test_fresh_redoes_a_stage_and_what_depends_on_it(copied: Path) -> None:
    before = read_json(copied / "runs" / "tiny" / "supernet" / "stage.json")
    lines: list[str] = []
    run = open_tiny(copied, "retrain.seeds=[3]", lines=lines, fresh="retrain")
    run_stages(run)
    assert [found.seed for found in read_results(run)[0].runs] == [3]
    assert lines[0] == "--fresh retrain: removed the results of retrain, export, report"
    assert sum("skipped" in line for line in lines) == 4
    assert read_json(copied / "runs" / "tiny" / "supernet" / "stage.json") == before


def test_fresh_of_a_later_stage_does_not_hide_an_earlier_change(copied: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"supernet\.recipe\.lr"):
        open_tiny(copied, "supernet.recipe.lr=0.2", fresh="retrain")
    assert (copied / "runs" / "tiny" / "retrain" / "results.json").exists()
    with pytest.raises(ConfigError, match="found 'all', allowed here: data, space, supernet"):
        open_tiny(copied, fresh="all")


@pytest.mark.slow  # as where Ray searches, and where a supernet goes on
def test_the_same_seed_gives_the_same_candidates_and_front(finished: Path, tmp_path: Path) -> None:
    run = open_tiny(tmp_path, OFF)
    run_stages(run, ("supernet", "search"))
    assert read_candidates(run) == read_candidates(open_tiny(finished))
    assert read_chosen(run) == read_chosen(open_tiny(finished))


def test_stages_alone_and_a_report_without_retraining(tmp_path: Path) -> None:
    lines: list[str] = []
    run = open_tiny(tmp_path, OFF, BRIEF, "search.trials=8", lines=lines)
    with pytest.raises(RunDirectoryError, match="the report builds on space"):
        rewrite_report(run)
    with pytest.raises(RunDirectoryError, match="search builds on supernet, which is not finished"):
        run_stages(run, ("search",))
    rewrite_report(run)
    report = tmp_path / "runs" / "tiny" / "report"
    assert "No architecture has been scored" in (report / "index.html").read_text()
    run_stages(run, ("supernet",))
    run_stages(run, ("search",))
    rewrite_report(run)
    assert "No architecture has been scored" not in (report / "index.html").read_text()
    assert (report / "index.html").exists()
    assert not (report / "networks.csv").exists()
    assert run.directory.finished("report") is None


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        open_unlocked(tmp_path, progress=Quiet())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("space/stage.json", '{"schema": 1}'),
        ("run.json", "[]"),
        ("run.json", '{"schema": 1, "runs": [[]]}'),
        ("space/space.json", '{"schema": 1}'),
        ("supernet/history.json", "{}"),
        ("search/candidates.json", '{"schema": 1, "candidates": [{}]}'),
        ("search/chosen.json", '{"schema": 1, "chosen": []}'),
        ("retrain/results.json", "[]"),
        ("retrain/results.json", '{"schema": 1, "networks": [{"runs": [{}]}]}'),
    ],
)
def test_spoilt_files_of_a_run_are_named(copied: Path, name: str, text: str) -> None:
    path = copied / "runs" / "tiny" / name
    path.write_text(text)
    with pytest.raises(RunDirectoryError, match=path.name) as caught:
        rewrite_report(open_tiny(copied))
    assert len(str(caught.value).splitlines()) == 1


def test_spoilt_files_of_a_broken_off_stage_are_named(copied: Path) -> None:
    directory = copied / "runs" / "tiny"
    for stage, name, text, error in (
        ("search", "study.json", "{}", RunDirectoryError),
        ("search", "study.journal", "nonsense\n", SearchError),
        ("retrain", "plan.json", '{"schema": 1, "networks": [{}]}', RunDirectoryError),
    ):
        marker = read_json(directory / stage / "stage.json")
        write_json(directory / stage / "stage.json", {**marker, "finished": None})
        kept = (directory / stage / name).read_text()
        (directory / stage / name).write_text(text)
        with pytest.raises(error):
            run_stages(open_tiny(copied), (stage,))
        (directory / stage / name).write_text(kept)
        write_json(directory / stage / "stage.json", marker)


def test_a_search_of_an_earlier_version_resumes(copied: Path) -> None:
    """Its metrics were in another file than the study."""
    directory = copied / "runs" / "tiny" / "search"
    marker = read_json(directory / "stage.json")
    write_json(directory / "stage.json", {**marker, "finished": None})
    journal = directory / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"metrics"' not in line))
    (directory / "outcomes.jsonl").write_text("")
    before = read_candidates(open_tiny(copied))
    run_stages(open_tiny(copied, OFF), ("search",))
    after = read_candidates(open_tiny(copied))
    assert [(c.id, c.loss) for c in after] == [(c.id, c.loss) for c in before]


@pytest.mark.slow
def test_a_run_directory_may_move_and_mlflow_may_be_gone(copied: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "runs"
    shutil.copytree(copied / "runs" / "tiny", moved / "tiny")
    run_stages(open_tiny(tmp_path / "elsewhere", fresh="export"))
    assert (moved / "mlflow.db").exists()
