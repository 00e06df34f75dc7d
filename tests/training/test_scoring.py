"""Scores of candidates that are converted from a trained network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from octnas.data.digits import DigitImages
from octnas.data.images import Data
from octnas.errors import SettingError
from octnas.nn.supernet import ConvertedNetwork, build, recalibrate
from octnas.space.search_space import SearchSpace
from octnas.training.loop import frozen
from octnas.training.scoring import Scorer, divergence, make_scorer
from octnas.training.settings import Recipe
from tests.nn.reference import randomise
from tests.training.resuming import CPU
from tests.training.small import digits, with_timm_strides

ARGS: dict[str, Any] = {"calibration_batches": 2, "batch_size": 60, "device": CPU}


@pytest.fixture(scope="module")
def space(digit_space: SearchSpace) -> SearchSpace:
    return with_timm_strides(digit_space)


@pytest.fixture(scope="module")
def trained(
    space: SearchSpace, few_digits: DigitImages, tmp_path_factory: pytest.TempPathFactory
) -> ConvertedNetwork:
    """A network whose statistics are those of the images, and whose logits differ."""
    model = randomise(build(space.vanilla, seed=7))
    with torch.no_grad():
        model.get_submodule("fc").weight.mul_(20)
    recalibrate(model, [pixels for pixels, _ in few_digits.train_batches(80, seed=1).epoch(0)])
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return ConvertedNetwork(space, path)


def scorer_of(trained: ConvertedNetwork, images: DigitImages, **settings: Any) -> Scorer:
    original = frozen(trained.load(), Recipe(), CPU)
    return Scorer(
        trained.load(),
        images,
        "search_val",
        activate=trained.activate,
        original=original,
        **{**ARGS, **settings},
    )


def converted(
    trained: ConvertedNetwork, alphas: dict[str, float], images: DigitImages
) -> nn.Module:
    """The network that is scored, with statistics of its own."""
    model = trained.load()
    trained.activate(model, alphas)
    batches = [pixels for pixels, _ in images.train_batches(60, seed=0).epoch(0)]
    recalibrate(model, batches[:2])
    return model.eval()


def test_a_divergence_is_that_of_the_probabilities() -> None:
    """Against sums over classes; 0 for the same network, log of the classes from a sure one."""
    torch.manual_seed(0)
    logits, other = 3 * torch.randn(6, 5), 3 * torch.randn(6, 5)
    q, p = (torch.exp(one.double()) / one.double().exp().sum(1)[:, None] for one in (logits, other))
    expected = (p * (p.log() - q.log())).sum(1)
    assert expected.min() > 0.1
    torch.testing.assert_close(divergence(logits, other), expected)
    assert divergence(other, other).abs().max() < 1e-12
    sure, guess = torch.tensor([[1e3, 0, 0, 0]]), torch.zeros(1, 4)
    assert divergence(guess, sure).item() == pytest.approx(torch.tensor(4.0).log().item())


def test_a_score_may_be_the_divergence_from_the_original(
    space: SearchSpace, trained: ConvertedNetwork, few_digits: DigitImages
) -> None:
    half = dict(space.uniform(0.5).alphas)
    score = scorer_of(trained, few_digits, measure="kl")
    found, loss = score(half), scorer_of(trained, few_digits)(half)
    pixels = torch.cat([some for some, _ in few_digits.batches("search_val", 60)])
    with torch.inference_mode():
        before = trained.load().eval()(pixels)
        after = converted(trained, half, few_digits)(pixels)
    assert before.std() > 0.5
    assert found["loss"] == pytest.approx(divergence(after, before).mean().item(), rel=1e-5)
    assert found["loss"] > 0.5
    assert found["top1"] == loss["top1"]
    assert found.keys() == loss.keys() == {"loss", "top1", "half_loss"}
    # Nothing is lost at α = 0 but by other statistics.
    assert score({})["loss"] < found["loss"] / 30
    assert score(half) == found


def test_divergences_on_the_first_images(
    space: SearchSpace, trained: ConvertedNetwork, few_digits: DigitImages
) -> None:
    half = space.uniform(0.5).alphas
    whole = scorer_of(trained, few_digits, measure="kl")(half)
    rung = scorer_of(trained, few_digits, measure="kl", first=0.3, batch_size=7)
    rung._calibration = scorer_of(trained, few_digits)._calibration
    both, part = rung(half), rung(half, 0.0)
    for key in ("loss", "half_loss"):
        assert both[key] == pytest.approx(whole[key], rel=1e-5)
    assert part["loss"] == part["first_loss"] == both["first_loss"] != both["loss"]
    assert part["share"] == pytest.approx(0.3)
    assert "half_loss" not in part


def test_taught_steps_improve_a_candidate(
    space: SearchSpace, trained: ConvertedNetwork, few_digits: DigitImages
) -> None:
    half = space.uniform(0.5).alphas
    for measure, least in (("kl", 0.3), ("loss", 0.1)):
        before, after = (
            scorer_of(trained, few_digits, measure=measure, steps=steps)(half)["loss"]
            for steps in (0, 8)
        )
        assert after < before - least


def test_taught_candidates_leave_nothing_behind(
    space: SearchSpace, trained: ConvertedNetwork, few_digits: DigitImages
) -> None:
    """Each starts from the original, whatever was taught before; random states are kept."""
    half, most = space.uniform(0.5).alphas, space.uniform(1).alphas
    score = scorer_of(trained, few_digits, steps=2)
    state = torch.get_rng_state()
    first, between, again = score(half), score(most), score(half)
    assert first == again != between
    assert torch.equal(torch.get_rng_state(), state)
    other = scorer_of(trained, few_digits, steps=2)
    assert [other(most), other(half)] == [between, first]
    assert scorer_of(trained, few_digits, steps=3)(half) != first
    assert scorer_of(trained, few_digits, steps=0)(half) != first


def test_more_steps_than_batches_continue_in_the_next_epoch(
    trained: ConvertedNetwork, few_digits: DigitImages
) -> None:
    batches = len(few_digits.train_batches(60, 0))
    score = scorer_of(trained, few_digits, steps=batches + 1)
    assert score._lessons is not None
    shown = [images for images, _ in score._lessons.batches]
    assert len(shown) == batches + 1
    assert not torch.equal(shown[0], shown[batches])
    # Not the images of the calibration.
    assert not torch.equal(shown[0], score._calibration[0])


def test_any_process_gives_the_same_score(
    space: SearchSpace, trained: ConvertedNetwork, few_digits: DigitImages, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    settings = {"calibration_batches": 2, "batch_size": 60, "measure": "kl", "steps": 2}
    score = make_scorer(
        trained,
        Data(digits(320, 60, 60, 80), tmp_path),
        "search_val",
        device="cpu",
        threads=1,
        original=trained,
        **settings,
    )
    half = space.uniform(0.5).alphas
    assert score(half) == scorer_of(trained, few_digits, measure="kl", steps=2)(half)
    torch.set_num_threads(threads)


def test_a_divergence_needs_an_original(trained: ConvertedNetwork, few_digits: DigitImages) -> None:
    for wrong in ({"measure": "kl"}, {"steps": 1}):
        with pytest.raises(SettingError, match="original: found None"):
            Scorer(trained.load(), few_digits, "search_val", **{**ARGS, **wrong})
