from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor, nn

from octnas.errors import SettingError
from octnas.nn.supernet import activate, build_supernet
from octnas.space.cost_table import CostLevels
from octnas.space.costs import conv_macs
from octnas.space.search_space import SearchSpace
from octnas.training.loop import Step
from octnas.training.sampled import architecture_draw, rising_alphas, sampling_steps
from octnas.training.settings import SupernetSettings

UNIFORM = SupernetSettings(sampling="uniform")
BY_MACS = SupernetSettings(sampling="by_macs")


def batch(space: SearchSpace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, *space.input_size, generator=generator)
    return images, torch.arange(8) % 10


def step_of(supernet: nn.Module, space: SearchSpace, number: int = 0) -> Step:
    return Step(number, *batch(space), supernet, F.cross_entropy)


def gradients(supernet: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in supernet.parameters() if p.grad is not None]


def test_sampling_by_macs_is_level_where_uniform_sampling_crowds(digit_space: SearchSpace) -> None:
    spread = {}
    for settings in (BY_MACS, UNIFORM):
        draw = architecture_draw(digit_space, settings, seed=0)
        macs = [digit_space.cost(draw(number)).macs for number in range(400)]
        low, high = min(macs), max(macs)
        counts = np.histogram(macs, bins=4, range=(low, high))[0]
        spread[settings.sampling] = counts.max() / max(1, counts.min())
    assert spread["by_macs"] < 2 < spread["uniform"]


@pytest.mark.parametrize("settings", [BY_MACS, UNIFORM])
def test_a_draw_depends_on_seed_number_and_rank_alone(
    digit_space: SearchSpace, settings: SupernetSettings
) -> None:
    draws = [architecture_draw(digit_space, settings, seed) for seed in (0, 0, 1)]
    assert [draws[0](n) for n in range(9)] == [draws[1](n) for n in reversed(range(9))][::-1]
    assert draws[0](3) != draws[2](3)
    assert draws[0](3) != architecture_draw(digit_space, settings, 0, rank=1)(3)


@pytest.mark.parametrize("settings", [BY_MACS, UNIFORM])
def test_processes_draw_different_architectures_of_about_the_same_cost(
    digit_space: SearchSpace, settings: SupernetSettings
) -> None:
    assert CostLevels(digit_space).exact
    ranks = [architecture_draw(digit_space, settings, 0, rank) for rank in range(4)]
    different, spread, everything = 0, list[float](), list[int]()
    for number in range(20):
        drawn = [draw(number) for draw in ranks]
        costs = [digit_space.cost(alphas).macs for alphas in drawn]
        spread.append(np.std(costs))
        everything += costs
        different += len({tuple(alphas.values()) for alphas in drawn})
    assert different > 40
    # By MACs they are equal.
    assert np.mean(spread) <= (0.3 if settings is UNIFORM else 0) * np.std(everything)


def test_uniform_sampling_is_uniform_in_every_process(digit_space: SearchSpace) -> None:
    draw = architecture_draw(digit_space, UNIFORM, 0, rank=1)
    drawn = [draw(number) for number in range(1000)]
    for site in digit_space.searchable:
        counts = [sum(one[site.name] == choice for one in drawn) for choice in site.choices]
        assert chisquare(counts).pvalue > 1e-4, site.name


def test_a_space_with_one_architecture_can_be_trained(digit_space: SearchSpace) -> None:
    """The largest and the smallest one are the same; there may be no samples."""
    single = replace(
        digit_space, sites=tuple(replace(site, choices=(0.5,)) for site in digit_space.sites)
    )
    supernet = build_supernet(single, seed=0, switchable=True)
    settings = SupernetSettings(sampling="sandwich", samples=0)
    loss = sampling_steps(supernet, single, settings, seed=0)(step_of(supernet, single))
    assert 1 < float(loss) < 4
    assert max(float(grad.abs().max()) for grad in gradients(supernet)) > 1e-3


def test_the_drawn_cost_and_architecture_are_independent(
    digit_space: SearchSpace,
) -> None:
    # Inside a narrow range of costs, as if the architectures were drawn with numbers of their own.
    settings = SupernetSettings(sampling="by_macs", macs=(0.3, 0.4))
    draw, levels = architecture_draw(digit_space, settings, seed=0), CostLevels(digit_space)
    low, high = (round(share * digit_space.vanilla_macs) for share in settings.macs)
    rng = np.random.default_rng(1)
    drawn = [draw(number) for number in range(1500)]
    expected = [levels.sample_at(rng, levels.sample_level(rng, low, high)) for _ in range(1500)]
    for site in digit_space.searchable:
        counts = [
            [sum(one[site.name] == choice for one in many) for choice in site.choices]
            for many in (drawn, expected)
        ]
        assert chi2_contingency(counts).pvalue > 1e-4, site.name


def test_draws_stay_in_the_range_of_macs(digit_space: SearchSpace) -> None:
    draw = architecture_draw(digit_space, SupernetSettings(macs=(0.5, 0.6)), seed=0)
    shares = [digit_space.cost(draw(n)).macs / digit_space.vanilla_macs for n in range(200)]
    assert 0.5 <= min(shares) < 0.51
    assert 0.59 < max(shares) <= 0.6


def test_a_range_without_architectures_is_an_error_at_once(digit_space: SearchSpace) -> None:
    share = digit_space.smallest_macs / digit_space.vanilla_macs
    assert all(conv_macs(conv, 1.0, 1.0) > 0 for conv in digit_space.convs)
    with pytest.raises(SettingError, match=r"macs: found \(0.0, .*; none has 0 to [\d,]+ MACs"):
        architecture_draw(digit_space, SupernetSettings(macs=(0.0, 0.9 * share)), seed=0)


def test_a_sandwich_averages_the_gradients_of_its_architectures(digit_space: SearchSpace) -> None:
    """The largest one learns the labels; the others learn its output."""
    supernet = build_supernet(digit_space, seed=0, switchable=True)
    draw = architecture_draw(digit_space, BY_MACS, seed=3)
    drawn = [draw(2 * 5), draw(2 * 5 + 1)]
    ends = [{site.name: site.choices[end] for site in digit_space.sites} for end in (0, -1)]
    images, labels = batch(digit_space)
    total, targets = 0.0, labels
    for alphas in (*ends, *drawn):
        activate(supernet, alphas)
        logits = supernet(images)
        loss = F.cross_entropy(logits, targets) / 4
        loss.backward()
        total += float(loss.detach())
        if targets is labels:
            targets = logits.detach().softmax(1)
    expected = gradients(supernet)
    supernet.zero_grad()
    settings = SupernetSettings(sampling="sandwich", samples=2)
    steps = sampling_steps(supernet, digit_space, settings, seed=3)
    loss = steps(step_of(supernet, digit_space, 5))
    assert float(loss) == pytest.approx(total)
    assert max(float(grad.abs().max()) for grad in expected) > 1e-3
    for found, wanted in zip(gradients(supernet), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("teacher", "trained"),
    [("largest", 4), ("none", 4), (0.5, 5), (0.0, 4)],
)
def test_any_uniform_architecture_may_teach(
    digit_space: SearchSpace,
    monkeypatch: pytest.MonkeyPatch,
    teacher: float | str,
    trained: int,
) -> None:
    import octnas.training.sampled as module

    seen: list[dict[str, float]] = []
    monkeypatch.setattr(module, "activate", lambda _, alphas: seen.append(dict(alphas)))
    supernet = build_supernet(digit_space, seed=0)
    settings = SupernetSettings(sampling="sandwich", samples=2, teacher=teacher)  # type: ignore[arg-type]
    sampling_steps(supernet, digit_space, settings, seed=0)(step_of(supernet, digit_space))
    assert len(seen) == trained
    first = 0.0 if isinstance(teacher, str) else teacher
    assert seen[0] == digit_space.uniform(first).alphas


def test_alphas_rise_to_their_choices(digit_space: SearchSpace) -> None:
    limit = rising_alphas(digit_space, 10)
    full = {site.name: site.choices[-1] for site in digit_space.sites}
    seen = [limit(full, number) for number in range(12)]
    assert seen[0] == {site.name: site.choices[0] for site in digit_space.sites}
    assert seen[10] == seen[11] == full
    for before, after in pairwise(seen):
        assert all(before[name] <= after[name] for name in full)
    for number, alphas in enumerate(seen):
        assert max(alphas.values()) <= max(full.values()) * number / 10 or number > 10
        assert all(alphas[site.name] in site.choices for site in digit_space.sites)


def test_an_original_teaches_every_architecture(digit_space: SearchSpace) -> None:
    supernet = build_supernet(digit_space, seed=0)
    targets = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    settings = SupernetSettings(sampling="sandwich", samples=1, teacher="original", weights="x")
    steps = sampling_steps(
        supernet, digit_space, settings, seed=0, original=lambda images: targets[: len(images)]
    )
    found = steps(step_of(supernet, digit_space))
    draw = architecture_draw(digit_space, settings, 0)
    ends = [{site.name: site.choices[end] for site in digit_space.sites} for end in (0, -1)]
    losses = []
    for alphas in (*ends, draw(0)):
        activate(supernet, alphas)
        logits = supernet(batch(digit_space)[0])
        losses.append(float(F.cross_entropy(logits.detach(), targets.softmax(1))))
    assert float(found) == pytest.approx(np.mean(losses))
