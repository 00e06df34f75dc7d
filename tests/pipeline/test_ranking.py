"""The ranking check: its ground truth, interrupted, resumed and shared; figures and messages."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from octnas.errors import BudgetError, ConfigError, RunDirectoryError
from octnas.io.files import read_json, write_json
from octnas.pipeline.ranking import draw, read_design, read_rankings, table, trainings
from octnas.pipeline.run import Run
from octnas.pipeline.space import make_space, prepare_data
from octnas.pipeline.stages import rewrite_report, run_stages
from octnas.results.networks import SeedResult
from octnas.results.ranking import kendall
from octnas.runtime.directory import WHOLE_RUN
from tests.pipeline.test_tracking_of_runs import artifacts, runs_of
from tests.pipeline.tiny import EXPERIMENT, OFF, TINY
from tests.pipeline.tiny_ranking import STAGES, TINY_RANKING, open_ranking, results


def test_the_design_is_drawn_by_seed_and_all_different(ranked: Path) -> None:
    run = open_ranking(ranked)
    design = read_design(run)
    assert design == draw(run)
    assert len({run.space.architecture(drawn.alphas).id for drawn in design}) == 6
    narrow = [run.space.cost(drawn.alphas).macs for drawn in design if drawn.narrow]
    (top,) = {max(budget.max_macs for budget in run.budgets)}
    assert len(narrow) == 2
    assert all(0.8 * top <= macs <= top for macs in narrow)


def test_every_figure_rests_on_what_is_on_disk(ranked: Path) -> None:
    run = open_ranking(ranked)
    rankings = read_rankings(run)
    assert list(rankings) == ["supernet"]
    truth: dict[str, list[float]] = {}
    for training in trainings(run):
        path = training.folder / "result.json"
        result = SeedResult.from_dict(json.loads(path.read_text()))
        truth.setdefault(training.architecture.id, []).append(result.metrics["read_top1"])
    for ranking in rankings.values():
        assert {one.id: list(one.truth) for one in ranking.architectures} == truth
        for one in ranking.architectures:
            assert one.macs == run.space.cost(one.alphas).macs
        losses = np.array([-one.loss for one in ranking.architectures])
        means = np.array([np.mean(one.truth) for one in ranking.architectures])
        tau = ranking.statistics["tau_loss"].value
        assert tau == pytest.approx(kendall(losses, means))
        assert ranking.epochs == 2
    first, *others = rankings.values()
    for other in others:
        assert other.statistics["tau_macs"] == first.statistics["tau_macs"]
        assert other.statistics["ceiling"] == first.statistics["ceiling"]


def test_the_table_names_every_figure(ranked: Path) -> None:
    text = table(open_ranking(ranked))
    assert "6 architectures, 2 of them at nearly equal MACs" in text
    for words in ("Scores of supernet", "noise ceiling", "τ of MACs alone", "regret"):
        assert words in text


def test_a_second_time_everything_is_skipped(ranked: Path) -> None:
    lines: list[str] = []
    before = results(ranked)
    run_stages(open_ranking(ranked, lines=lines), STAGES)
    assert all("skipped, finished 20" in line for line in lines)
    assert len(lines) == 2 + len(STAGES)
    assert results(ranked) == before


def test_a_whole_run_does_neither_ground_truth_nor_ranking(finished: Path) -> None:
    assert not {"truth", "rank"} & set(WHOLE_RUN)
    assert not (finished / "runs" / "tiny" / "truth").exists()
    assert not (finished / "runs" / "tiny" / "rank").exists()


def test_fresh_rank_leaves_the_ground_truth_alone(spoilable: Path) -> None:
    def figures() -> dict[str, object]:
        document = read_json(spoilable / "runs" / "tiny" / "rank" / "ranking.json")
        return {source: one | {"seconds": 0} for source, one in document["sources"].items()}

    before, trained = figures(), results(spoilable)
    lines: list[str] = []
    run_stages(open_ranking(spoilable, OFF, fresh="rank", lines=lines), STAGES)
    assert lines[0] == "--fresh rank: removed the results of rank"
    assert results(spoilable) == trained
    assert figures() == before


def test_fresh_supernet_leaves_the_ground_truth_alone(spoilable: Path) -> None:
    before = results(spoilable)
    lines: list[str] = []
    open_ranking(spoilable, "supernet.recipe.lr=0.05", fresh="supernet", lines=lines)
    assert lines[0].startswith("--fresh supernet: removed the results of supernet, rank, search")
    assert results(spoilable) == before
    assert len(before) == 12


@pytest.mark.parametrize(
    ("override", "stage", "key"),
    [
        ("ranking.seeds=[0]", "truth", "ranking.seeds: was [0, 1], now [0]"),
        ("ranking.narrow_width=0.1", "truth", "ranking.narrow_width: was 0.2, now 0.1"),
        ("ranking.recipe.lr=0.05", "truth", "ranking.recipe.lr: was 0.1, now 0.05"),
        ("ranking.resamples=30", "rank", "ranking.resamples: was 20, now 30"),
        ("search.images_per_batch=50", "rank", "search.images_per_batch: was 250, now 50"),
    ],
)
def test_an_edited_setting_is_refused(ranked: Path, override: str, stage: str, key: str) -> None:
    with pytest.raises(RunDirectoryError) as caught:
        open_ranking(ranked, override)
    assert key in str(caught.value)
    assert f"--fresh {stage}" in str(caught.value)


def test_how_it_is_trained_may_change(ranked: Path) -> None:
    open_ranking(ranked, "ranking.workers=3", "ranking.executor=ray")


def test_a_missing_training_is_one_line(spoilable: Path) -> None:
    folder = spoilable / "runs" / "tiny" / "truth"
    gone = next(folder.glob("*/seed-1/result.json"))
    gone.unlink()
    with pytest.raises(RunDirectoryError, match="seed-1: this training is missing"):
        run_stages(open_ranking(spoilable, OFF, fresh="rank"), STAGES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("truth/design.json", "{}"),
        ("truth/design.json", '{"schema": 1, "architectures": [{"alphas": 3}]}'),
        ("rank/ranking.json", '{"schema": 1, "sources": []}'),
        ("rank/ranking.json", '{"schema": 1, "sources": {"supernet": {}}}'),
    ],
)
def test_spoilt_files_are_named(spoilable: Path, name: str, text: str) -> None:
    path = spoilable / "runs" / "tiny" / name
    path.write_text(text)
    run = open_ranking(spoilable)
    with pytest.raises(RunDirectoryError, match=path.name) as caught:
        table(run) if name.startswith("rank") else read_design(run)
    assert len(str(caught.value).splitlines()) == 1


def with_space(path: Path, *overrides: str) -> Run:
    run = open_ranking(path, OFF, *overrides)
    prepare_data(run)
    make_space(run)
    return run


def test_the_seed_decides_the_draws(tmp_path: Path) -> None:
    designs = [
        draw(with_space(tmp_path / str(number), f"ranking.seed={seed}"))
        for number, seed in enumerate((0, 0, 1))
    ]
    assert designs[0] == designs[1] != designs[2]


def test_a_budget_above_the_dearest_leaves_a_slice(tmp_path: Path) -> None:
    run = with_space(tmp_path, "space.budgets=[{macs: 999999999}]")
    costs = [run.space.cost(drawn.alphas).macs for drawn in draw(run) if drawn.narrow]
    assert len(costs) == 2
    assert min(costs) >= 0.8 * run.levels.largest


def test_more_than_there_are_is_refused(tmp_path: Path) -> None:
    many = ("ranking.architectures=302", "ranking.narrow=300", "ranking.narrow_width=0.001")
    run = with_space(tmp_path, *many)
    with pytest.raises(
        BudgetError, match=r"ranking: 300 architectures of [\d,]+ to [\d,]+ MACs are needed"
    ):
        draw(run)
    small = with_space(tmp_path / "small", "space.alphas=[0]", "space.budgets=[{uniform: 0}]")
    with pytest.raises(BudgetError, match=r"found 1; lower ranking.architectures"):
        draw(small)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ranking.recipe.optimizer=sgdd", "--set: ranking.recipe.optimizer: found 'sgdd'"),
        ("ranking.recipe.batch_size=999", "--set: ranking.recipe.batch_size: found 999"),
        ("space.backbone_args.num_classes=12", "num_classes: found 12, but the data has 10"),
        ("device=cuda:77", "device: found 'cuda:77'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(
    tmp_path: Path, override: str, message: str
) -> None:
    run = open_ranking(tmp_path, OFF, override)
    with pytest.raises(ConfigError) as caught:
        run_stages(run, ("truth",))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert results(tmp_path) == {}


def test_mlflow_holds_figures_table_and_page(ranked: Path) -> None:
    run = runs_of(ranked)["ranking check"]
    assert run.info.status == "FINISHED"
    assert run.data.params["ranking.architectures"] == "6"
    assert artifacts(ranked, run) == {"ranking.json", "ranking.csv", "ranking.html"}
    for source, ranking in read_rankings(open_ranking(ranked)).items():
        for name, one in ranking.statistics.items():
            found = run.data.metrics.get(f"{source}/{name}")
            assert found == (None if one.value is None else pytest.approx(one.value))
        assert ranking.statistics["tau_loss"].value is not None


def test_the_report_shows_the_ranking_once_it_is_there(spoilable: Path) -> None:
    lines: list[str] = []
    run = open_ranking(spoilable, "search.trials=10", OFF, lines=lines)
    run_stages(run, ("search",))
    rewrite_report(run)
    page = run.directory.path / "report" / "index.html"
    assert "Do the scores rank?" in page.read_text()
    again = open_ranking(spoilable, "search.trials=10", OFF, fresh="rank", lines=lines)
    rewrite_report(again)
    assert "Do the scores rank?" not in page.read_text()
    assert not any("octnas report" in line for line in lines)
    run_stages(again, STAGES)
    assert f"rank: `octnas report {run.directory.path}` adds it to the report" in lines
    rewrite_report(again)
    assert "Do the scores rank?" in page.read_text()


def accuracies(run: Run) -> dict[tuple[str, int], dict[str, float]]:
    found = {}
    for training in trainings(run):
        assert training.result is not None
        metrics = {name: training.result.metrics[name] for name in ("read_top1", "read_loss")}
        found[training.architecture.id, training.seed] = metrics
    return found


def unfinish(path: Path) -> None:
    marker = path / "runs" / "tiny" / "truth" / "stage.json"
    write_json(marker, {**read_json(marker), "finished": None})


@pytest.mark.slow
def test_a_killed_ground_truth_goes_on_and_is_the_same(ranked: Path, tmp_path: Path) -> None:
    overrides = (*TINY, *TINY_RANKING, OFF)
    command = [sys.executable, "-c", "from octnas.cli.main import main; main()", "truth"]
    command += [str(EXPERIMENT), "--run-dir", str(tmp_path / "runs" / "tiny")]
    process = subprocess.Popen(
        [*command, *(part for override in overrides for part in ("--set", override))],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(results(tmp_path)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = results(tmp_path)
    assert len(kept) < 12
    run = open_ranking(tmp_path, OFF)
    assert run.directory.finished("truth") is None
    run_stages(run, ("truth",))
    after = results(tmp_path)
    assert {place: after[place] for place in kept} == kept
    assert accuracies(run) == accuracies(open_ranking(ranked))


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_what_is_missing_is_trained_side_by_side(
    ranked: Path, spoilable: Path, executor: str
) -> None:
    folder = spoilable / "runs" / "tiny" / "truth"
    gone = sorted(folder.glob("*/seed-1"))[:3]
    for place in gone:
        shutil.rmtree(place)
    unfinish(spoilable)
    kept = results(spoilable)
    overrides = (OFF, f"ranking.executor={executor}", "ranking.workers=2")
    run = open_ranking(spoilable, *overrides)
    run_stages(run, ("truth",))
    after = results(spoilable)
    assert len(after) == len(kept) + 3 == 12
    assert {place: after[place] for place in kept} == kept
    assert accuracies(run) == accuracies(open_ranking(ranked))


def test_ray_is_not_started_for_nothing(spoilable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between the last training and the end of the stage."""
    import octnas.cluster.start as module

    unfinish(spoilable)
    monkeypatch.setattr(module, "local_cluster", lambda _: pytest.fail("Ray was started"))
    run = open_ranking(spoilable, OFF, "ranking.executor=ray")
    run_stages(run, ("truth",))
    assert run.directory.finished("truth") is not None


class TestShared:
    def test_another_runs_is_used_and_nothing_trained(self, ranked: Path, tmp_path: Path) -> None:
        before = results(ranked)
        other = f"ranking.truth_from={ranked / 'runs' / 'tiny'}"
        lines: list[str] = []
        run = open_ranking(tmp_path, OFF, other, "supernet.recipe.lr=0.05", lines=lines)
        run_stages(run, STAGES)
        assert sum("skipped" in line for line in lines) == 1
        assert not (tmp_path / "runs" / "tiny" / "truth").exists()
        assert results(ranked) == before
        here, there = (read_rankings(one)["supernet"] for one in (run, open_ranking(ranked)))
        assert [one.truth for one in here.architectures] == [
            one.truth for one in there.architectures
        ]
        assert [one.loss for one in here.architectures] != [one.loss for one in there.architectures]
        # The run directory by itself knows where it is.
        again = open_ranking(tmp_path, OFF, other, "supernet.recipe.lr=0.05")
        assert read_design(again) == read_design(open_ranking(ranked))

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("ranking.seeds=[0]", "its truth was made with other settings (ranking.seeds: was"),
            ("ranking.recipe.lr=1.0", "(ranking.recipe.lr: was 0.1, now 1.0)"),
            ("data.seed=5", "its data was made with other settings (data.seed: was 0, now 5)"),
            ("space.alphas=[0, 1]", "its space was made with other settings (space.alphas: was"),
        ],
    )
    def test_other_settings_are_refused_by_name(
        self, ranked: Path, tmp_path: Path, override: str, message: str
    ) -> None:
        other = ranked / "runs" / "tiny"
        run = open_ranking(tmp_path, OFF, f"ranking.truth_from={other}", override)
        with pytest.raises(RunDirectoryError) as caught:
            run_stages(run, STAGES)
        said = str(caught.value)
        # Before a supernet is trained for nothing.
        assert not run.directory.stage("supernet").exists()
        assert said.startswith(f"ranking.truth_from: {other}: ")
        assert message in said
        assert "--fresh" not in said  # which would not touch the other run
        assert len(said.splitlines()) == 1

    def test_other_images_are_refused(self, spoilable: Path, tmp_path: Path) -> None:
        """The same settings, but what was on the disk was not the same."""
        path = spoilable / "runs" / "tiny" / "truth" / "design.json"
        document = read_json(path)
        write_json(path, {**document, "images": "0123456789abcdef"})
        run = open_ranking(tmp_path, OFF, f"ranking.truth_from={spoilable / 'runs' / 'tiny'}")
        with pytest.raises(RunDirectoryError, match="trained on images of digest 0123456"):
            run_stages(run, STAGES)

    def test_fresh_does_not_pretend_to_redo_it(self, ranked: Path, tmp_path: Path) -> None:
        other = f"ranking.truth_from={ranked / 'runs' / 'tiny'}"
        with pytest.raises(ConfigError, match="--fresh truth: these results belong to"):
            open_ranking(tmp_path, OFF, other, fresh="truth")
        assert len(results(ranked)) == 12

    @pytest.mark.slow
    def test_what_is_not_finished_there_is_said(self, tmp_path: Path) -> None:
        lines: list[str] = []
        other = tmp_path / "shared"
        run = open_ranking(tmp_path, OFF, f"ranking.truth_from={other}", lines=lines)
        run_stages(run, ("truth",))
        assert f"truth: goes to {other}, where it is not finished yet" in lines
        assert len(list(other.glob("truth/*/*/result.json"))) == 12
        assert results(tmp_path) == {}

    def test_the_run_itself_is_no_other_run(self, spoilable: Path) -> None:
        own = f"ranking.truth_from={spoilable / 'runs' / '..' / 'runs' / 'tiny'}"
        lines: list[str] = []
        open_ranking(spoilable, OFF, own, fresh="truth", lines=lines)
        assert lines == ["--fresh truth: removed the results of truth, rank"]

    def test_an_own_one_with_other_settings_is_no_obstacle(
        self, ranked: Path, spoilable: Path
    ) -> None:
        """What is not used is not looked at."""
        shutil.rmtree(spoilable / "runs" / "tiny" / "rank")
        marker = spoilable / "runs" / "tiny" / "truth" / "stage.json"
        document = read_json(marker)
        document["fingerprint"]["ranking.recipe.lr"] = 0.7
        write_json(marker, document)
        with pytest.raises(RunDirectoryError, match=r"ranking\.recipe\.lr"):
            open_ranking(spoilable, OFF)
        run = open_ranking(spoilable, OFF, f"ranking.truth_from={ranked / 'runs' / 'tiny'}")
        run_stages(run, STAGES)
        assert run.directory.finished("rank") is not None
