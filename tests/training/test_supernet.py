import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octnas.data.digits import DigitImages
from octnas.data.images import Data, open_images
from octnas.data.settings import ImagesSettings
from octnas.errors import TrainingError
from octnas.nn.conv import OctaveConv2d
from octnas.nn.supernet import TrainedSupernet, build, subnet
from octnas.space.costs import Budget
from octnas.space.search_space import SearchSpace
from octnas.training.checkpoint import Checkpoints
from octnas.training.scoring import Scorer, evaluate, make_scorer
from octnas.training.settings import Recipe, SupernetSettings
from octnas.training.supernet import train_supernet
from tests.data.trees import make_tree, prepared
from tests.training.resuming import CPU, BrokenOffError, assert_equal_weights, timeless
from tests.training.small import digits

SETTINGS = SupernetSettings(threads=1, recipe=Recipe(epochs=3, batch_size=32))


@pytest.fixture(scope="module")
def trained(digit_space: SearchSpace, few_digits: DigitImages) -> torch.nn.Module:
    return train_supernet(digit_space, few_digits, SETTINGS, seed=0, device=CPU)[0]


def test_training_samples_many_architectures(
    digit_space: SearchSpace, few_digits: DigitImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    import octnas.training.sampled as module

    seen: Counter[tuple[float, ...]] = Counter()
    real = module.activate

    def watch(supernet: torch.nn.Module, alphas: dict[str, float]) -> None:
        seen[tuple(alphas.values())] += 1
        real(supernet, alphas)

    monkeypatch.setattr(module, "activate", watch)
    _, history = train_supernet(digit_space, few_digits, SETTINGS, seed=0, device=CPU)
    assert sum(seen.values()) == 3 * 10
    assert len(seen) > 20
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_the_seed_decides_everything(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    again, _ = train_supernet(digit_space, few_digits, SETTINGS, seed=0, device=CPU)
    other, _ = train_supernet(digit_space, few_digits, SETTINGS, seed=1, device=CPU)
    same = [
        torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True)
    ]
    differ = [
        torch.equal(a, b) for a, b in zip(trained.parameters(), other.parameters(), strict=True)
    ]
    assert all(same)
    assert not any(differ)


def test_a_score_depends_on_the_candidate_alone(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    """Not on earlier scores: statistics are re-estimated each time."""
    scorer = Scorer(
        copy.deepcopy(trained),
        few_digits,
        "search_val",
        calibration_batches=2,
        batch_size=60,
        device=CPU,
    )
    half, full = digit_space.uniform(0.5).alphas, digit_space.uniform(1).alphas
    first, between, again = scorer(half), scorer(full), scorer(half)
    assert first == again != between
    assert 0.1 < first["loss"] < 5
    assert 0 <= first["top1"] <= 1


def test_the_first_images_decide_whether_the_rest_is_scored(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    def scorer(first: float) -> Scorer:
        network, args = copy.deepcopy(trained), {"calibration_batches": 2, "batch_size": 60}
        return Scorer(network, few_digits, "search_val", device=CPU, first=first, **args)

    half = digit_space.uniform(0.5).alphas
    whole, rung = scorer(1)(half), scorer(0.3)
    both, part = rung(half), rung(half, 0.0)
    assert both["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert both["top1"] == pytest.approx(whole["top1"])
    assert both["share"] == 1
    assert part["loss"] == part["first_loss"] == both["first_loss"] != both["loss"]
    count = few_digits.count("search_val")
    assert part["share"] == round(0.3 * count) / count
    assert rung(half, part["loss"]) == both
    # Half of the images by the same order, so that three tenths of the images are among them.
    assert scorer(0.5)(half, 0.0)["loss"] == pytest.approx(both["half_loss"], rel=1e-5)
    assert whole.keys() == {"loss", "top1", "half_loss"}
    assert both["half_loss"] == pytest.approx(whole["half_loss"], rel=1e-5)
    assert "half_loss" not in part


def test_a_loss_that_is_not_finite_is_an_error(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    spoilt = copy.deepcopy(trained)
    with torch.no_grad():
        spoilt.get_submodule("fc").bias[0] = float("nan")
    scorer = Scorer(
        spoilt,
        few_digits,
        "search_val",
        calibration_batches=2,
        batch_size=60,
        device=CPU,
    )
    with pytest.raises(TrainingError, match="loss of an architecture is nan; train the supernet"):
        scorer(digit_space.uniform(0.5).alphas)


def test_a_score_is_that_of_the_subnet_with_its_own_statistics(
    digit_space: SearchSpace, few_digits: DigitImages, trained: torch.nn.Module
) -> None:
    from octnas.nn.supernet import recalibrate

    half = digit_space.uniform(0.5).alphas
    scorer = Scorer(
        copy.deepcopy(trained),
        few_digits,
        "search_val",
        calibration_batches=2,
        batch_size=60,
        device=CPU,
    )
    network = subnet(trained, half)
    recalibrate(network, [x for x, _ in list(few_digits.train_batches(60, seed=0).epoch(0))[:2]])
    found = scorer(half)
    del found["half_loss"]
    expected = evaluate(network, few_digits.batches("search_val", 60), CPU).metrics
    # To rounding: the scorer computes in channels-last.
    assert found == pytest.approx({name: expected[name] for name in ("loss", "top1")}, rel=1e-6)


def test_a_scorer_from_files_gives_the_same_scores(
    digit_space: SearchSpace, trained: torch.nn.Module, tmp_path: Path
) -> None:
    data = Data(digits(320, 60, 60, 80), tmp_path)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    threads = torch.get_num_threads()
    scores = []
    for _ in range(2):
        scorer = make_scorer(
            TrainedSupernet(digit_space, tmp_path / "weights.safetensors", switchable=True),
            data,
            "read",
            calibration_batches=2,
            batch_size=60,
            device="cpu",
            threads=1,
        )
        scores.append(scorer(digit_space.uniform(0.5).alphas))
    torch.set_num_threads(threads)
    assert scores[0] == scores[1]


def test_activation_reaches_every_convolution(
    digit_space: SearchSpace, trained: torch.nn.Module
) -> None:
    network = subnet(trained, digit_space.uniform(0.5))
    convs = [module for module in network.modules() if isinstance(module, OctaveConv2d)]
    assert len(convs) == len(digit_space.convs)
    assert all(conv.low_channels == conv.out_channels // 2 for conv in convs)


def test_statistics_come_from_all_classes(
    digit_space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are listed by class: without shuffling, the first batch has one class only."""
    import octnas.training.scoring as module

    seen: list[torch.Tensor] = []
    monkeypatch.setattr(module, "recalibrate", lambda _, batches: seen.extend(batches))
    root = make_tree(tmp_path / "tree")
    settings = ImagesSettings(root=str(root), search_val_per_class=3, read_per_class=2, workers=0)
    images = open_images(prepared(settings, tmp_path / "data"), (3, 16, 16))
    supernet = build(
        replace(digit_space.uniform(0), input_size=(3, 16, 16), backbone_args={}), seed=0
    )
    scorer = Scorer(supernet, images, "search_val", calibration_batches=1, batch_size=7, device=CPU)
    scorer({})
    assert len(seen) == 1
    red, blue = seen[0][:, 0].mean(dim=(1, 2)), seen[0][:, 2].mean(dim=(1, 2))
    assert (red > blue).any()
    assert (red < blue).any()


SAMPLINGS = [
    SupernetSettings(sampling="uniform", switchable=False),
    SupernetSettings(sampling="by_macs", switchable=True),
    SupernetSettings(sampling="sandwich", samples=1, switchable=True),
    SupernetSettings(sampling="learnable", switchable=True),
]


@pytest.mark.parametrize("settings", SAMPLINGS, ids=lambda settings: settings.sampling)
def test_a_resumed_supernet_gives_the_same_bits(
    digit_space: SearchSpace, few_digits: DigitImages, tmp_path: Path, settings: SupernetSettings
) -> None:
    """For every sampling, and with averaged weights of switchable batch norms."""
    recipe = Recipe(epochs=2, batch_size=64, warmup_epochs=0.5, ema=0.9)
    settings = replace(settings, recipe=recipe)
    budgets = [Budget("half", digit_space.vanilla_macs // 2)]
    learned: list[dict[str, Any]] = []

    def run(checkpoints: Checkpoints | None, end: int = -1) -> tuple[torch.nn.Module, Any]:
        def on_step(number: int) -> None:
            if number == end:
                raise BrokenOffError

        return train_supernet(
            digit_space,
            few_digits,
            settings,
            seed=1,
            device=CPU,
            checkpoints=checkpoints,
            on_step=on_step,
            budgets=budgets,
            on_learned=lambda found: learned.append(dict(found)),
        )

    whole, expected = run(None)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 0)
    for end in (3, 5, 9):
        with pytest.raises(BrokenOffError):
            run(checkpoints, end)
    resumed, history = run(checkpoints)
    assert_equal_weights(whole, resumed)
    assert timeless(history) == timeless(expected)
    assert all(found == learned[0] for found in learned)
    assert len(learned) == (2 if settings.sampling == "learnable" else 0)
