"""Learned distributions over α: with synthetic losses, then with a network."""

import io
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnas.data.digits import DigitImages
from octnas.errors import SettingError
from octnas.nn.supernet import build_supernet
from octnas.space.cost_table import CostLevels
from octnas.space.costs import Budget
from octnas.space.distribution import Distribution, expected_macs
from octnas.space.search_space import SearchSpace
from octnas.training.learnable import LearnableSteps, Learner
from octnas.training.loop import Step
from octnas.training.sampled import architecture_draw
from octnas.training.settings import LearnableSettings, SupernetSettings

SETTINGS = LearnableSettings()
SHARES = (0.35, 0.5, 0.75)

Loss = Callable[[dict[str, Tensor]], Tensor]


def budget_of(space: SearchSpace, share: float) -> Budget:
    return Budget(f"{share}", round(share * space.vanilla_macs))


def alpha_of(space: SearchSpace, sample: dict[str, Tensor], site: str) -> Tensor:
    return sample[site] @ torch.tensor(space.site[site].choices, dtype=torch.float64)


def learn(
    space: SearchSpace,
    budget: Budget,
    loss: Loss,
    settings: LearnableSettings = SETTINGS,
    steps: int = 250,
) -> Learner:
    learner = Learner(space, budget, settings)
    for step in range(steps):
        rng = np.random.default_rng(step)
        rate = settings.lr * (1 + np.cos(np.pi * step / steps)) / 2
        learner.learn(loss(learner.sample(rng, 1.0)), rate, lambda _: None)
    return learner


def off(space: SearchSpace, learner: Learner) -> float:
    """How far the expectation is from the budget, as a share."""
    return float(expected_macs(space, learner.probabilities)) / learner.budget.max_macs - 1


SLOPES = (-1.0, 1.0, 4.0)
QUICKLY = tuple(zip(SHARES, SLOPES, strict=True))


@pytest.mark.parametrize(
    ("share", "slope"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in QUICKLY))
        for pair in itertools.product(SHARES, SLOPES)
    ],
)
def test_the_expected_macs_meet_the_budget_at_any_scale_of_the_loss(
    digit_space: SearchSpace, share: float, slope: float
) -> None:
    """The loss depends on α linearly; without the penalty all sites would go to one end."""

    def loss(sample: dict[str, Tensor]) -> Tensor:
        return slope * torch.stack([alpha_of(digit_space, sample, s) for s in sample]).mean()

    budget = budget_of(digit_space, share)
    learner = learn(digit_space, budget, loss)
    assert abs(off(digit_space, learner)) < 0.02
    assert learner.multiplier * slope > 0
    free = replace(SETTINGS, penalty=0.0, multiplier_lr=1e-9)
    assert abs(off(digit_space, learn(digit_space, budget, loss, free))) > 0.1


def test_alpha_is_high_where_it_does_not_matter(digit_space: SearchSpace) -> None:
    def loss(sample: dict[str, Tensor]) -> Tensor:
        return 3 * alpha_of(digit_space, sample, "layer3") - alpha_of(digit_space, sample, "layer1")

    budget = budget_of(digit_space, 0.6)
    probabilities = learn(digit_space, budget, loss).probabilities
    assert probabilities["layer3"][0] > 0.7
    assert probabilities["layer1"][-1] > 0.7
    found = Distribution.of(CostLevels(digit_space), budget, probabilities)
    assert found.macs <= budget.max_macs
    assert (found.alphas["layer1"], found.alphas["layer3"]) == (1.0, 0.0)


def test_samples_are_one_hot_and_their_gradient_soft(digit_space: SearchSpace) -> None:
    learner = Learner(digit_space, budget_of(digit_space, 0.5), SETTINGS)
    counts = dict.fromkeys(learner.probabilities, 0.0)
    for seed in range(400):
        sample = learner.sample(np.random.default_rng(seed), 1.0)
        assert all(sorted(values.tolist()) == [0.0, 0.0, 1.0] for values in sample.values())
        counts = {name: counts[name] + float(sample[name][0].detach()) / 400 for name in counts}
    for name, shares in learner.probabilities.items():
        assert counts[name] == pytest.approx(shares[0], abs=0.07)
    assert all(values.requires_grad for values in sample.values())


def make(
    space: SearchSpace, images: DigitImages, settings: LearnableSettings, seed: int = 0
) -> tuple[nn.Module, LearnableSteps]:
    supernet = build_supernet(space, seed=0, switchable=True).train()
    budgets = [budget_of(space, share) for share in SHARES]
    explore = architecture_draw(space, SupernetSettings(), seed)
    return supernet, LearnableSteps(
        supernet, space, budgets, images, settings, explore=explore, seed=seed, steps=24
    )


def advance(
    supernet: nn.Module, steps: LearnableSteps, images: DigitImages, numbers: range
) -> list[float]:
    """Plain gradient descent on the training part; the losses."""
    batches = list(images.train_batches(16, 0).epoch(0))
    losses = []
    for number in numbers:
        supernet.zero_grad()
        some, labels = batches[number % len(batches)]
        losses.append(float(steps(Step(number, some, labels, supernet, F.cross_entropy))))
        with torch.no_grad():
            for parameter in supernet.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)
    return losses


QUICK = LearnableSettings(warmup=0.25, every=2, batch_size=16)


def test_budgets_take_turns_after_the_warm_up(
    digit_space: SearchSpace, few_digits: DigitImages
) -> None:
    """24 steps, 6 of them warm-up; three budgets, each learning every second time."""
    supernet, steps = make(digit_space, few_digits, QUICK)
    learned = []
    for number in range(24):
        before = steps.probabilities
        advance(supernet, steps, few_digits, range(number, number + 1))
        changed = [name for name in before if steps.probabilities[name] != before[name]]
        learned.append(changed)
    names = [f"{share}" for share in SHARES]
    expected = [[names[n % 3]] if n >= 6 and n // 3 % 2 == 0 else [] for n in range(24)]
    assert learned == expected


@pytest.mark.parametrize(("explore", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_share_of_the_steps_explores(
    digit_space: SearchSpace, few_digits: DigitImages, explore: float, share: float
) -> None:
    """The others draw from the distribution of their budget."""
    _, steps = make(digit_space, few_digits, replace(QUICK, explore=explore))
    wide = architecture_draw(digit_space, SupernetSettings(), 0)
    some, labels = next(few_digits.train_batches(16, 0).epoch(0))
    found = 0
    for number in range(200):
        step = Step(number, some, labels, nn.Identity(), F.cross_entropy)
        found += steps._draw(steps.learners[0], step) == wide(number)
    assert found / 200 == pytest.approx(share, abs=0.1)


def test_processes_draw_different_architectures_of_about_the_same_cost(
    digit_space: SearchSpace, few_digits: DigitImages
) -> None:
    """The MACs of the distribution itself spread by a fifth."""
    _, steps = make(digit_space, few_digits, replace(QUICK, explore=0.0))
    some, labels = next(few_digits.train_batches(16, 0).epoch(0))
    costs, different = [], 0
    for number in range(100):
        drawn = [
            steps._draw(
                steps.learners[1], Step(number, some, labels, nn.Identity(), F.cross_entropy, rank)
            )
            for rank in range(3)
        ]
        costs.append([digit_space.cost(alphas).macs for alphas in drawn])
        different += len({tuple(alphas.values()) for alphas in drawn})
    assert different > 250
    among = np.std(costs, axis=1).mean() / np.std(costs)
    assert among < 0.4


def test_weights_and_logits_learn_from_disjoint_parts(
    digit_space: SearchSpace, few_digits: DigitImages
) -> None:
    """A step of the logits adds no gradient to the weights, and uses images of search_val."""
    seen: list[str] = []

    class Watched(DigitImages):
        def batches(self, part: str, batch_size: int) -> list[tuple[Tensor, Tensor]]:
            seen.append(part)
            return few_digits.batches(part, batch_size)

    watched = Watched.__new__(Watched)
    supernet, steps = make(digit_space, watched, replace(QUICK, warmup=0.0, every=1))
    assert seen == ["search_val"]
    some, labels = next(few_digits.train_batches(16, 0).epoch(0))
    learner = steps.learners[0]
    before = learner.probabilities
    steps._learn(learner, Step(0, some, labels, supernet, F.cross_entropy))
    assert learner.probabilities != before
    assert all(parameter.grad is None for parameter in supernet.parameters())


def test_a_resumed_training_gives_the_same_bits(
    digit_space: SearchSpace, few_digits: DigitImages
) -> None:
    """With the state in a file that is read without running code."""
    supernet, steps = make(digit_space, few_digits, QUICK)
    advance(supernet, steps, few_digits, range(14))
    file = io.BytesIO()
    torch.save({"network": supernet.state_dict(), "steps": steps.state_dict()}, file)
    rest = advance(supernet, steps, few_digits, range(14, 24))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again = make(digit_space, few_digits, QUICK)
    other.load_state_dict(saved["network"])
    again.load_state_dict(saved["steps"])
    assert advance(other, again, few_digits, range(14, 24)) == rest
    assert again.probabilities == steps.probabilities
    assert [a.multiplier for a in again.learners] == [a.multiplier for a in steps.learners]
    for one, two in zip(supernet.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_seed_decides(digit_space: SearchSpace, few_digits: DigitImages) -> None:
    found = []
    for seed in (0, 0, 1):
        supernet, steps = make(digit_space, few_digits, QUICK, seed)
        found.append(advance(supernet, steps, few_digits, range(20)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("explore", 1.5),
        ("warmup", 1.0),
        ("every", 0),
        ("lr", 0.0),
        ("temperature", (1.0, 0.0)),
        ("penalty", -1.0),
    ],
)
def test_settings_out_of_range(key: str, value: object) -> None:
    with pytest.raises(SettingError, match=key):
        LearnableSettings(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("teacher", {"teacher": "original", "weights": "timm"}),
        ("alpha_warmup", {"alpha_warmup": 0.1}),
    ],
)
def test_settings_of_other_samplings_are_refused(key: str, values: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=rf"{key}: .* sampling: learnable"):
        SupernetSettings(sampling="learnable", **values)  # type: ignore[arg-type]
