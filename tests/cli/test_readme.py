"""The README's commands are run: here, or on something small by a test that is named here."""

import re
import shutil
from pathlib import Path

import pytest

from octnas.pipeline.records import read_results
from octnas.report.png import find_browser
from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT, TINY, open_tiny, with_store
from tests.test_readme import ALL, ROOT, shown_commands

QUICK = (
    "plan experiments/NAME.yaml",
    "slurm EXPERIMENT --out jobs --partition gpu --gpus 4 --cpus 16 --mem 64G --time 08:00:00",
    "report runs/NAME",
    "report runs/NAME --watch",
    "report runs/NAME --png",
    "report runs/digits --png",
    "latency networks runs/NAME --batch 1",
    "compare runs/ONE runs/OTHER",
    "supernet search_spaces/digits_scratch.yaml --run-dir runs/table --set data.read_images=2000 "
    "--set space.alphas=[0,0.25,0.5,0.75] --set space.fixed.stem=0 --set space.fixed.layer3=0",
    "plan EXPERIMENT",
    "sync runs/NAME",
)
"""Run here on the tiny run, as they stand but for the names of runs and experiments."""

# They need the extra octnas[export], and half a minute.
EXPORTS = (
    "export runs/digits --budget 0.5x --to timm,onnx,openvino,pt2",
    "export runs/digits --architecture 10503299 --to onnx --precision fp32,int8",
)

_IMAGES = "tests/pipeline/test_space.py::test_a_broken_image_stops_the_run_or_is_counted"
_TRUTH = "tests/pipeline/test_ranking.py::"
_BENCH = "tests/cli/test_bench.py::"

ELSEWHERE = {
    "run": "tests/cli/test_commands.py::test_run_prints_where_to_look",
    "run experiments/NAME.yaml": "tests/pipeline/test_minimal.py::test_a_minimal_experiment_runs",
    "compress WEIGHTS --data PATH --model resnet50 --budget 0.6": (
        "tests/cli/test_compress.py::test_from_a_folder_to_report_and_exports"
    ),
    "init --minimal --data PATH": "tests/pipeline/test_minimal.py::test_a_minimal_experiment_runs",
    "supernet tests/benchmarks/resnet50_quarter.yaml --set data.root=PATH": _IMAGES,
    "search EXPERIMENT --set search.executor=ray --set search.workers=8": (
        "tests/pipeline/test_ray.py::test_ray_gives_the_candidates_that_this_process_gives"
    ),
    "search EXPERIMENT --address auto": (
        "tests/cluster/test_start.py::test_a_node_that_dies_loses_no_result"
    ),
    "original search_spaces/digits.yaml": (
        "tests/pipeline/test_original.py::test_a_whole_run_trains_it_first"
    ),
    "rank search_spaces/digits.yaml --set ranking.architectures=24 --set ranking.narrow=16 "
    "--set ranking.seeds=[0,1] --set ranking.recipe.epochs=4 --set retrain.fit_images=0 "
    "--set search.score=converted": (
        "tests/pipeline/test_convert.py::test_scores_are_ranked_against_fine_tuned_networks"
    ),
    "truth EXPERIMENT": f"{_TRUTH}test_what_is_missing_is_trained_side_by_side",
    "rank EXPERIMENT": "tests/pipeline/test_ranking.py::test_every_figure_rests_on_what_is_on_disk",
    "rank EXPERIMENT --run-dir runs/other --set supernet.sampling=uniform "
    "--set ranking.truth_from=runs/NAME": f"{_TRUTH}test_another_runs_is_used_and_nothing_trained",
    "latency EXPERIMENT --backend onnxruntime --batch 1 --name laptop --out laptop.json": (
        "tests/cli/test_latency.py::test_a_measured_table_is_of_the_experiment"
    ),
    "latency search_spaces/digits_scratch.yaml --backend onnxruntime --batch 16 --repeats 40 "
    "--fit 120 --networks 40 --narrow 40": (
        "tests/cli/test_latency.py::test_a_measured_table_is_of_the_experiment"
    ),
    "latency pack EXPERIMENT FOLDER": (
        "tests/measure/test_pack.py::test_a_pack_holds_all_that_is_timed"
    ),
    "latency import FOLDER --out phone.json": (
        "tests/measure/test_pack.py::test_an_answer_becomes_a_table"
    ),
    "bench --data experiments/tiny_imagenet.yaml --set data.root=PATH --threads 2": (
        "tests/cli/test_bench.py::test_a_table_for_a_reader_of_images"
    ),
    "bench --model resnet50 --batch 8 --alphas 0.25,0.5,0.75": f"{_BENCH}test_a_table_for_a_reader",
    "bench --mode training --batch 8 --alphas 0.125,0.5 --threads 2": (
        f"{_BENCH}test_a_training_table"
    ),
    "bench --supernet EXPERIMENT": "tests/cli/test_bench.py::test_a_table_for_a_reader_of_steps",
}
"""What takes longer, or images, a cluster or a device: the test that runs it on something small."""


def test_every_command_is_run_by_a_test() -> None:
    shown = {" ".join(words) for words in shown_commands()}
    assert shown == {*QUICK, *EXPORTS, *ELSEWHERE}
    assert set(ELSEWHERE).isdisjoint((*QUICK, *EXPORTS))


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_the_test_of_a_command_exists(place: str) -> None:
    file, _, name = place.partition("::")
    assert re.search(rf"^ *def {name}\(", (ROOT / file).read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize(
    "command", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in EXPORTS)]
)
def test_commands_do_what_they_say(
    octnas: Octnas,
    finished: Path,
    migrated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    if command in EXPORTS:
        pytest.importorskip("openvino", reason="the extra octnas[export]")
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    # A new one keeps its artifacts here, and not where those of the run that is shared are.
    with_store(Path(), migrated)
    shutil.copytree("runs/tiny", "runs/other")
    experiment = [str(EXPERIMENT), *(word for one in TINY for word in ("--set", one))]
    stands_for = {
        **dict.fromkeys(
            ("EXPERIMENT", "experiments/NAME.yaml", "search_spaces/digits_scratch.yaml"), experiment
        ),
        **dict.fromkeys(("runs/NAME", "runs/ONE", "runs/digits"), ("runs/tiny",)),
        "runs/OTHER": ["runs/other"],
        "10503299": [read_results(open_tiny(finished))[0].network.architecture.id[:8]],
    }
    words = [part for word in command.split() for part in stands_for.get(word, [word])]
    result = octnas(*words)
    assert result.code == 0, result.err
    if "--png" in words and find_browser():
        picture = Path("runs/tiny/report/figures/front.png")
        assert 1_000 < picture.stat().st_size < 100_000


def test_the_cost_that_is_shown(octnas: Octnas) -> None:
    assert "octnas cost resnet50 --alpha 0.5" in " ".join(ALL.split())
    assert "2.367 G" in octnas("cost", "resnet50", "--alpha", "0.5").out
