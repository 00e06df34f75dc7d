"""Runs that train the network themselves that they begin with."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import octnas.training.standalone as trainings
from octnas.cluster.slurm import SlurmSettings
from octnas.data.images import open_images
from octnas.errors import ConfigError, RunDirectoryError
from octnas.io.files import read_json
from octnas.nn.supernet import build
from octnas.nn.weights import load_weights
from octnas.pipeline.convert import sorted_weights
from octnas.pipeline.export import _origin
from octnas.pipeline.fingerprints import whole_run
from octnas.pipeline.original import trained_weights
from octnas.pipeline.records import read_candidates, read_chosen, read_results
from octnas.pipeline.report import facts
from octnas.pipeline.retrain import read_original
from octnas.pipeline.run import Run
from octnas.pipeline.slurm import JOBS, write_jobs
from octnas.pipeline.stages import run_stages
from octnas.results.networks import Retrained
from octnas.results.validation_log import VALIDATION_LOG, count_validations
from octnas.runtime.directory import WHOLE_RUN
from octnas.space.architecture import Architecture
from octnas.training.scoring import evaluate
from tests.loading import load_config
from tests.pipeline.test_tracking_of_runs import runs_of
from tests.pipeline.tiny import open_tiny, with_store
from tests.training.resuming import BrokenOffError, until

OWN = "original={recipe: {epochs: 2, batch_size: 64}}"
QUICK = (
    *("retrain.seeds=[0]", "search.trials=8", "retrain.baselines=[uniform]"),
    "space.budgets=[{uniform: 0.5}]",
)


def open_own(path: Path, *overrides: str, **kwargs: object) -> Run:
    return open_tiny(path, OWN, *QUICK, *overrides, **kwargs)


@pytest.fixture(scope="module")
def trained(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original")
    with_store(path, migrated)
    run_stages(open_own(path, stages=("original",)), ("original",))
    return path


def test_a_whole_run_trains_it_first(trained: Path) -> None:
    lines: list[str] = []
    run = open_own(trained, lines=lines)
    run_stages(run)
    stages = whole_run(run.config)
    assert set(stages) == {*WHOLE_RUN, "original", "convert"} - {"supernet"}
    assert all(run.directory.finished(stage) for stage in stages)
    assert sum("skipped, finished" in line for line in lines) == 4
    assert facts(run)["Original"] == "trained by this run, 2 epochs"
    assert_the_front_is_shown_before_fine_tuning(run, lines)
    assert_original_is_in_the_results(run, lines)
    made = run.directory.marker("convert")
    assert made is not None
    assert (made.fingerprint["space.weights"], len(made.fingerprint["input.original"])) == ("", 16)


def assert_the_front_is_shown_before_fine_tuning(run: Run, lines: list[str]) -> None:
    start = next(n for n, line in enumerate(lines) if line.startswith("  before fine-tuning: "))
    end = next(n for n, line in enumerate(lines) if line.startswith("  report so far: "))
    assert end < next(n for n, line in enumerate(lines) if line.startswith("  the original: "))
    rows = lines[start + 1 : end]
    vanilla = {one.id: one for one in read_candidates(run)}[run.space.vanilla.id]
    assert rows[0].split() == [
        *("the", "original", "100.0", "%", "100.0", "%"),
        *(f"{vanilla.loss:.3f}", "–"),
    ]
    for budget in run.budgets:
        chosen = read_chosen(run)[budget.name]
        row = next(line for line in rows if chosen.id in line)
        assert f"{chosen.macs / vanilla.macs:.1%}".replace("%", " %") in row
        assert row.endswith(f"{chosen.loss:.3f}   {chosen.metrics['read_loss']:.3f}")
    assert any("uniform α" in line and line.endswith("–") for line in rows)


def assert_original_is_in_the_results(run: Run, lines: list[str]) -> None:
    """Evaluated once on val, with the weights that were trained first."""
    found = read_original(run)
    assert found is not None
    document = read_json(run.directory.stage("retrain") / "results.json")
    assert Retrained.from_dict(document["original"]) == found
    assert read_results(run) == tuple(map(Retrained.from_dict, document["networks"]))
    images = open_images(run.data, run.space.input_size)
    model = build(run.space.vanilla, seed=0)
    load_weights(model, trained_weights(run))
    expected = evaluate(model, images.batches("val", 64), torch.device("cpu")).metrics
    assert found.mean("val_top1") == expected["top1"]
    assert found.mean("val_loss") == pytest.approx(expected["loss"], rel=1e-4)
    log = count_validations(run.directory.path / VALIDATION_LOG)
    assert log["retrain"] == len({one.network.architecture.id for one in read_results(run)}) + 1
    metrics = runs_of(run.directory.path.parents[1])["tiny"].data.metrics
    assert metrics["val_top1/original"] == pytest.approx(expected["top1"])
    said = next(line for line in lines if line.startswith("  the original: "))
    assert f"{100 * expected['top1']:.1f} % top-1, " in said
    page = (run.directory.stage("report") / "report.md").read_text()
    assert f"top-1 against the original’s {100 * expected['top1']:.1f} %" in page.split("##")[0]
    (card, *_) = run.directory.path.glob("export/searched-*/README.md")
    assert f"whose top-1 on val is {100 * expected['top1']:.2f} %; this net" in card.read_text()
    assert "from a plain thumbnail_resnet trained on the same images, which" in card.read_text()


def test_it_is_the_network_at_alpha_0_and_is_then_sorted(trained: Path) -> None:
    run = open_own(trained, stages=("original",))
    before, after = load_file(trained_weights(run)), load_file(sorted_weights(run))
    assert before.keys() == after.keys()
    orders = read_json(sorted_weights(run).with_name("channels.json"))["orders"]
    assert torch.equal(after["conv1.weight"], before["conv1.weight"][orders["stem"]])


def test_a_stopped_training_resumes(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ("original.recipe.checkpoint_seconds=0", "tracking.enabled=false")
    broken = open_own(tmp_path, *every, stages=("original",))
    with monkeypatch.context() as patch:
        patch.setattr(trainings, "plain", until(5))
        with pytest.raises(BrokenOffError):
            run_stages(broken, ("original",))
    run = open_own(tmp_path, *every, stages=("original",))
    assert run.directory.finished("original") is None
    run_stages(run, ("original",))
    whole = load_file(trained_weights(open_own(trained)))
    found = load_file(trained_weights(run))
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_other_settings_need_the_stage_anew(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    with pytest.raises(RunDirectoryError, match=r"original\.seed: was 0, now 1.*--fresh original"):
        open_own(tmp_path, "original.seed=1")
    lines: list[str] = []
    run = open_own(tmp_path, "original.seed=1", fresh="original", lines=lines)
    assert "original, convert" in lines[0]
    assert run.directory.finished("space")


def test_a_stage_after_it_waits_for_it(tmp_path: Path) -> None:
    run = open_own(tmp_path, stages=("data",))
    run_stages(run, ("data",))
    assert not run.directory.stage("convert").exists()
    with pytest.raises(RunDirectoryError, match=r"convert builds on original.*`octnas original`"):
        run_stages(run, ("search",))


def test_given_weights_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("space: {weights: w.pth}\noriginal: {recipe: {epochs: 3}}\n")
    config = load_config(tmp_path / "e.yaml")
    assert config.has_original
    assert not config.trains_original
    assert "original" not in whole_run(config)
    run = open_tiny(tmp_path, stages=("original",))
    with pytest.raises(ConfigError, match=r"^original: found nothing to train"):
        run_stages(run, ("original",))


def test_recipes_and_strides_are_those_of_a_run_with_weights(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("original:\n  recipe: {epochs: 30}\n")
    config = load_config(tmp_path / "e.yaml")
    assert config.original is not None
    assert (config.original.recipe.epochs, config.original.recipe.lr) == (30, 0.1)
    assert config.original.recipe.warmup_epochs == 3
    assert (config.retrain.recipe.epochs, config.retrain.recipe.lr) == (11, 0.01)
    assert config.space.stride_mode == "timm"
    assert config.scores_converted
    with pytest.raises(ConfigError, match=r"space\.stride_mode: found 'paper', allowed: timm with"):
        load_config(tmp_path / "e.yaml", ["space.stride_mode=paper"])


def test_a_cluster_trains_it_on_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("original: {}\n")
    gpus = SlurmSettings(gpus=2)
    write_jobs(tmp_path / "e.yaml", tmp_path / "jobs", gpus, run_dir=tmp_path / "run")
    jobs = {path.stem: path.read_text() for path in (tmp_path / "jobs").glob("*.sbatch")}
    assert set(jobs) == {*JOBS} - {"supernet"}
    assert "gpu" in jobs["original"]
    assert "gpu" not in jobs["data"]


def test_networks_of_other_widths_are_taught_by_it(trained: Path) -> None:
    run = open_own(trained, stages=("original",))
    plain = Architecture("thumbnail_resnet", (1, 16, 16), {}, backbone_args={"layers": [1, 1]})
    found = _origin(run, plain)
    assert found is not None
    assert (found.fine_tuned, found.taught, found.licensed) == (False, True, False)
    half = _origin(run, run.space.uniform(0.5))
    assert half is not None
    assert half.fine_tuned
    alone = replace(run.config, retrain=replace(run.config.retrain, distillation=None))
    assert _origin(replace(run, config=alone), plain) is None
