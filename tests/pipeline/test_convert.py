"""Runs that begin with a trained network."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octnas.cluster.slurm import SlurmSettings
from octnas.data.batches import Batch
from octnas.data.images import open_images
from octnas.errors import ConfigError, RunDirectoryError
from octnas.io.files import read_json
from octnas.nn.backbone import create_backbone
from octnas.nn.rescale import rescale_kernels
from octnas.nn.supernet import activate, build, recalibrate, subnet
from octnas.pipeline.convert import CHANNELS_FILE, sorted_weights
from octnas.pipeline.fingerprints import whole_run
from octnas.pipeline.ranking import read_rankings, table, trainings
from octnas.pipeline.records import class_names, read_candidates, read_results
from octnas.pipeline.report import facts, recipe_digest
from octnas.pipeline.retrain import original
from octnas.pipeline.run import Run, look_at_run
from octnas.pipeline.slurm import JOBS, write_jobs
from octnas.pipeline.stages import rewrite_report, run_stages
from octnas.pipeline.supernet import scorer, trained_supernet
from octnas.runtime.directory import WHOLE_RUN
from octnas.training.scoring import evaluate
from octnas.training.standalone import Original, Training, _initial
from tests.loading import load_config
from tests.nn.reference import randomise
from tests.pipeline.tiny import BRIEF, OFF, open_tiny
from tests.pipeline.tiny_ranking import TINY_RANKING

BACKBONE = ("thumbnail_resnet", {"layers": [1, 1, 1], "channels": [4, 8, 8], "in_chans": 1})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny network, with ordinary batch-norm statistics."""
    torch.manual_seed(0)
    name, args = BACKBONE
    model = randomise(create_backbone(name, {**args, "num_classes": 10}))
    path = tmp_path_factory.mktemp("weights") / "original.safetensors"
    save_file(model.state_dict(), path)
    return path


def open_trained(path: Path, weights: Path, *overrides: str, **kwargs: object) -> Run:
    return open_tiny(path, f"space.weights={weights}", *overrides, **kwargs)


def logits(state: dict[str, Tensor], images: Tensor) -> Tensor:
    name, args = BACKBONE
    model = create_backbone(name, {**args, "num_classes": 10}).eval()
    model.load_state_dict(state)
    with torch.inference_mode():
        return model(images)


def test_channels_are_sorted_and_the_network_stays(tmp_path: Path, weights: Path) -> None:
    run, lines = open_trained(tmp_path, weights, stages=("data",)), list[str]()
    run.progress.say = lines.append  # type: ignore[method-assign]
    run_stages(run, ("data",))
    before, after = load_file(weights), load_file(sorted_weights(run))
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = logits(before, images)
    assert expected.std() > 0.05
    assert torch.allclose(logits(after, images), expected, rtol=1e-3, atol=1e-3 * expected.std())
    orders = read_json(sorted_weights(run).with_name(CHANNELS_FILE))["orders"]
    assert all(sorted(order) == list(range(len(order))) for order in orders.values())
    assert any(order != sorted(order) for order in orders.values())
    assert torch.equal(after["conv1.weight"], before["conv1.weight"][orders["stem"]])


def test_logits_follow_the_classes_by_name(tmp_path: Path, weights: Path) -> None:
    run = open_trained(tmp_path / "own", weights, stages=("data",))
    run_stages(run, ("data",))
    names = class_names(run)
    other = f"space.classes={json.dumps(names[::-1])}"
    again = open_trained(tmp_path / "other", weights, other, stages=("data",))
    run_stages(again, ("data",))
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = logits(load_file(sorted_weights(again)), images)
    expected = logits(load_file(sorted_weights(run)), images).flip(1)
    assert expected.std() > 0.05
    assert torch.allclose(found, expected, atol=1e-3 * expected.std())
    with pytest.raises(RunDirectoryError, match=r"space\.classes: was .*--fresh convert"):
        open_trained(tmp_path / "other", weights)
    wrong = f"space.classes={json.dumps([*names[1:], 'ten'])}"
    bad = open_trained(tmp_path / "bad", weights, wrong, stages=("data",))
    with pytest.raises(ConfigError, match=r"^space\.classes: found 10 names, .*, with '0'"):
        run_stages(bad, ("data",))


def test_every_image_is_decoded_once(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_trained(tmp_path, weights, "convert.batch_size=100", stages=("data",))
    sizes: list[int] = []

    def watched(*args: Any) -> Any:
        images = open_images(*args)
        real = images.batches

        def batches(part: str, *sized: int) -> Iterator[Batch]:
            for batch in real(part, *sized):
                sizes.extend([len(batch[1])] if part == "train" else [])
                yield batch

        images.batches = batches  # type: ignore[method-assign,assignment]
        return images

    monkeypatch.setattr("octnas.pipeline.convert.open_images", watched)
    run_stages(run, ("data",))
    assert sizes == [100, 100, 56]


QUICK = ("retrain.baselines=[uniform]", "retrain.seeds=[0]", "search.trials=8", BRIEF)


def test_a_whole_run_begins_with_it(tmp_path: Path, weights: Path) -> None:
    """Candidates are scored with its weights, and no supernet is trained."""
    lines: list[str] = []
    run = open_trained(tmp_path, weights, OFF, *QUICK, lines=lines)
    assert run.config.space.stride_mode == "timm"
    run_stages(run)
    assert any(line.startswith("convert: sorted the channels of") for line in lines)
    stages = whole_run(run.config)
    assert set(stages) == {*WHOLE_RUN, "convert"} - {"supernet"}
    assert all(run.directory.finished(stage) for stage in stages)
    assert not run.directory.stage("supernet").exists()
    assert len(read_results(run)) == 4
    for stage in ("search", "retrain"):
        marker = json.loads((run.directory.stage(stage) / "stage.json").read_text())
        assert "input.convert" in marker["fingerprint"]
    lines.clear()
    run_stages(open_trained(tmp_path, weights, OFF, *QUICK, lines=lines))
    assert sum("skipped, finished" in line for line in lines) == len(stages)
    page = (run.directory.stage("report") / "report.md").read_text()
    assert "supernet" not in page


@pytest.mark.slow
def test_a_supernet_may_begin_with_it(tmp_path: Path, weights: Path) -> None:
    """Taught by it; and the networks may begin with the supernet."""
    settings = ("search.score=supernet", "retrain.weights=supernet", "supernet.recipe.lr=0.0001")
    run = open_trained(tmp_path, weights, *settings, *QUICK)
    assert set(whole_run(run.config)) == {*WHOLE_RUN, "convert"}
    run_stages(run)
    for stage, bases in (("supernet", {"convert"}), ("retrain", {"convert", "supernet"})):
        marker = json.loads((run.directory.stage(stage) / "stage.json").read_text())
        assert bases <= {key.removeprefix("input.") for key in marker["fingerprint"]}
        if stage == "supernet":
            assert marker["fingerprint"]["supernet.teacher"] == "original"
    assert trained_supernet(run).rescaled
    # After so little training it still is about the original, at α = 0.
    supernet = trained_supernet(run).load().eval()
    activate(supernet, run.space.vanilla)
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = logits(load_file(weights), images)
    with torch.inference_mode():
        off = (subnet(supernet, run.space.vanilla)(images) - expected).std() / expected.std()
    assert 0 < off < 0.5
    assert facts(run)["Retraining"] == "2 epochs from the supernet"


def test_candidates_are_converted_from_the_original_each_time(
    tmp_path: Path, weights: Path
) -> None:
    """Whatever was converted before; by its own kernels and statistics."""
    run = open_trained(tmp_path, weights, stages=("data",))
    run_stages(run, ("data",))
    score = scorer(run, "search_val")()
    half, most = run.space.uniform(0.5).alphas, run.space.uniform(1).alphas
    first, _, again = score(half), score(most), score(half)
    assert first == again
    assert first["loss"] != score(most)["loss"]
    model = build(run.space.architecture(half), seed=0)
    model.load_state_dict(load_file(sorted_weights(run)))
    rescale_kernels(model)
    images = open_images(run.data, run.space.input_size)
    batches = images.train_batches(min(250, images.count("train")), seed=0).epoch(0)
    recalibrate(model, [pixels for pixels, _ in islice(batches, 1)])
    expected = evaluate(model, images.batches("search_val", 250), torch.device("cpu"))
    assert first["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-5)


@pytest.mark.slow
def test_candidates_may_be_taught_and_compared_with_the_original(
    tmp_path: Path, weights: Path
) -> None:
    """The report says what was measured."""
    kl, lines = ("search.measure=kl", "search.steps=2"), list[str]()
    run = open_trained(tmp_path, weights, *kl, *QUICK, lines=lines)
    run_stages(run, ("search",))
    rewrite_report(run)
    assert any("  KL divergence, search_val" in line for line in lines)
    smallest, *_, largest = sorted(read_candidates(run), key=lambda one: one.macs)
    assert 0 < largest.loss < smallest.loss - 0.01
    page = (run.directory.stage("report") / "report.md").read_text()
    assert "Its KL divergence in the converted original is" in page
    fingerprint = run.fingerprint("search")
    assert (fingerprint["search.measure"], fingerprint["search.steps"]) == ("kl", 2)


def test_other_weights_need_the_stage_anew(tmp_path: Path, weights: Path) -> None:
    run_stages(open_trained(tmp_path, weights, stages=("data",)), ("data",))
    other = {name: 2 * value for name, value in load_file(weights).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(RunDirectoryError, match=r"space\.weights: was .*--fresh convert"):
        open_trained(tmp_path, tmp_path / "other.safetensors")
    fresh = {"fresh": "convert", "stages": ("data",)}
    run_stages(open_trained(tmp_path, tmp_path / "other.safetensors", **fresh), ("data",))


def test_networks_start_from_the_rescaled_original(tmp_path: Path, weights: Path) -> None:
    run = open_trained(tmp_path, weights, stages=("data",))
    run_stages(run, ("data",))
    vanilla = run.space.architecture({site.name: 0.0 for site in run.space.sites})
    original = Original(vanilla, sorted_weights(run))
    half = run.space.uniform(0.5)
    found = _initial(Training(half, 0, tmp_path, original=original)).state_dict()
    expected = build(half, seed=0)
    expected.load_state_dict(load_file(sorted_weights(run)))
    assert all(torch.equal(found[k], v) for k, v in rescale_kernels(expected).state_dict().items())
    # At α = 0 it is the original, whatever the seed.
    same = _initial(Training(vanilla, 1, tmp_path, original=original)).state_dict()
    assert all(torch.equal(same[k], v) for k, v in load_file(sorted_weights(run)).items())


def spoilt(state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    if what == "not finite":
        state["conv1.weight"][0] = float("nan")
    elif what == "other classes":
        state["fc.weight"], state["fc.bias"] = torch.zeros(5, 8), torch.zeros(5)
    else:
        del state["layer1.0.conv1.weight"]
    return state


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("not finite", r"conv1\.weight: not all values are finite"),
        ("other classes", r"no fc\.weight, fc\.bias"),
        ("incomplete", r"1 weights are missing, such as layer1\.0\.conv1"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, weights: Path, what: str, message: str) -> None:
    path = tmp_path / "spoilt.safetensors"
    save_file(spoilt(load_file(weights), what), path)
    run = open_trained(tmp_path, path, stages=("data",))
    with pytest.raises(ConfigError, match=message) as caught:
        run_stages(run, ("data",))
    assert "space.weights" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert run.directory.finished("space") is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "space: {weights: w.pth, stride_mode: paper}",
            "space.stride_mode: found 'paper'",
        ),
        (
            "retrain: {weights: original}",
            "retrain.weights: found 'original', allowed: original",
        ),
        (
            "space: {weights: w.pth}\nsupernet: {weights: timm}",
            "supernet.weights: found 'timm', allowed: empty with space.weights",
        ),
        ("search: {score: converted}", "search.score: found 'converted', allowed: converted only"),
        (
            "search: {measure: kl}",
            "search.measure: found 'kl', allowed: kl only with space.weights",
        ),
        (
            "space: {weights: w.pth}\nsearch: {steps: 2, score: supernet}",
            "search.steps: found 2, allowed: 0, or more with converted scores",
        ),
        (
            "space: {weights: w.pth}\nretrain: {weights: supernet}",
            "retrain.weights: found 'supernet', allowed: supernet only with search.score: supernet",
        ),
        (
            "supernet: {teacher: original}",
            "supernet.teacher: found 'original', allowed: original only with space.weights or",
        ),
        ("search: {steps: -1}", "search.steps: found -1, allowed: 0 or more"),
        ("convert: {criterion: l1}", "convert.criterion: found 'l1', input should be 'energy'"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "e.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "e.yaml")
    assert message in str(caught.value)


def test_a_trained_network_is_fine_tuned_for_a_tenth_of_the_epochs(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("space: {weights: w.pth}\n")
    config = load_config(tmp_path / "e.yaml")
    assert config.space.stride_mode == "timm"
    assert (config.retrain.recipe.epochs, config.retrain.recipe.lr) == (11, 0.01)
    (tmp_path / "s.yaml").write_text("retrain: {weights: supernet}\n")
    assert load_config(tmp_path / "s.yaml").retrain.recipe.epochs == 11
    scratch = load_config(tmp_path / "e.yaml", ["retrain.weights=scratch"])
    assert (scratch.retrain.recipe.epochs, scratch.retrain.recipe.lr) == (110, 0.1)


def test_a_cluster_trains_no_supernet_either(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("space: {weights: w.pth}\n")
    write_jobs(tmp_path / "e.yaml", tmp_path / "jobs", SlurmSettings(), run_dir=tmp_path / "run")
    jobs = {path.stem for path in (tmp_path / "jobs").glob("*.sbatch")}
    assert jobs == {*JOBS} - {"original", "supernet"}
    assert "supernet" not in (tmp_path / "jobs" / "submit.sh").read_text()


def test_a_supernet_that_nothing_builds_on_is_redone_alone(tmp_path: Path, weights: Path) -> None:
    run = open_trained(tmp_path, weights, OFF, *QUICK)
    run_stages(run, ("supernet", "search"))
    assert "search" not in run.directory.forget("supernet")
    assert run.directory.finished("search")
    assert "search" in run.directory.forget("convert")
    assert not run.directory.finished("search")


def test_a_learnable_supernet_leaves_converted_scores_alone(tmp_path: Path, weights: Path) -> None:
    learns = ("supernet.sampling=learnable", "search.score=converted")
    run = open_trained(tmp_path, weights, OFF, *learns, *QUICK)
    run_stages(run, ("search",))
    assert not run.directory.stage("supernet").exists()


def test_a_checkpoint_may_be_gone_when_runs_are_compared(tmp_path: Path, weights: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    run = open_trained(tmp_path, copy, *QUICK)
    run_stages(run, ("data",))
    before = recipe_digest(run)
    copy.unlink()
    assert recipe_digest(look_at_run(run.directory.path)) == before


def test_scores_are_ranked_against_fine_tuned_networks(tmp_path: Path, weights: Path) -> None:
    few = ("ranking.recipe={epochs: 1, batch_size: 32}", *TINY_RANKING[1:-1])
    run = open_trained(tmp_path, weights, OFF, *few, stages=("truth", "rank"))
    run_stages(run, ("truth", "rank"))
    assert not run.directory.stage("supernet").exists()
    ranking = read_rankings(run)["converted original"]
    score, tuned = scorer(run, "search_val")(), trainings(run)
    assert all(one.original == original(run) for one in tuned)
    for one in ranking.architectures:
        assert one.loss == pytest.approx(score(one.alphas)["loss"])
        results = [single.result for single in tuned if single.architecture.id == one.id]
        assert one.trained_losses == tuple(r.metrics["read_loss"] for r in results if r)
    assert "fine-tuned from the original with 2 seeds" in table(run)
    # Networks that begin with another original are another ground truth.
    copy, shared = tmp_path / "copy.safetensors", f"ranking.truth_from={run.directory.path}"
    save_file({key: 2 * value for key, value in load_file(weights).items()}, copy)
    other = open_trained(tmp_path / "other", copy, OFF, *few, shared, stages=("truth",))
    with pytest.raises(
        RunDirectoryError, match=r"its convert was made with other .*space\.weights"
    ):
        run_stages(other, ("truth",))
    # Whoever trains networks from scratch has another ground truth.
    before = run.fingerprint("truth")
    learned = open_trained(tmp_path / "new", weights, *few, "retrain.weights=scratch")
    assert learned.fingerprint("truth") != before
    assert learned.config.ranking.recipe.lr != run.config.ranking.recipe.lr
