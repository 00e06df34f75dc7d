"""The ground truth: broken off and gone on with, by Ray, and another run's."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octnas.errors import ConfigError, RunDirectoryError
from octnas.files import write_json
from octnas.pipeline.opening import Run
from octnas.pipeline.rank import read_rankings
from octnas.pipeline.stages import run_stages
from octnas.pipeline.truth import read_design, trainings
from octnas.run_directory import read_json
from tests.pipeline.tiny import EXPERIMENT, TINY
from tests.pipeline.tiny_ranking import STAGES, TINY_RANKING, open_ranking, results

OFF = "tracking.enabled=false"


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
        assert sum("skipped" in line for line in lines) == 2
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
        with pytest.raises(RunDirectoryError, match="trained on other images, of digest 0123456"):
            run_stages(run, STAGES)

    def test_fresh_does_not_pretend_to_redo_it(self, ranked: Path, tmp_path: Path) -> None:
        other = f"ranking.truth_from={ranked / 'runs' / 'tiny'}"
        for stage in ("truth", "proxies"):
            with pytest.raises(ConfigError, match=f"--fresh {stage}: its results are those of"):
                open_ranking(tmp_path, OFF, other, fresh=stage)
        assert len(results(ranked)) == 12

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
