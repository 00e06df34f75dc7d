"""Turns, ratios and what is said of them; nothing here looks at a real clock.

What autograd keeps, against formulas: two maps per convolution and norm that are activated.
"""

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn

import octnas.nn
from octnas import octavize
from octnas.measure import timing
from octnas.measure.timing import Ratio, compare, interleave, kept_for_backward, memory_peak, spread
from tests.nn.reference import images

# Rounds for which ranks in the normal approximation without its correction cover too little are
# among them: 8, 11, 16, 21, 26.
ROUNDS = (6, 8, 11, 16, 20, 21, 26, 30)
SIMULATIONS = 2000


class Clock:
    """A clock that only the timed functions move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        """A function that takes so long, each time the next of these."""

        def function() -> None:
            self.now += seconds[self.calls.count(name) % len(seconds)]
            self.calls.append(name)

        return function


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.mark.parametrize("warm_up", [0, 1, 2])
def test_functions_take_turns(clock: Clock, warm_up: int) -> None:
    functions = {name: clock.takes(name, 1.0) for name in "abc"}
    found = interleave(functions, repeats=4, warm_up=warm_up)
    assert clock.calls == list("abc") * (warm_up + 4)
    assert list(found) == list("abc")
    assert all(seconds.shape == (4,) for seconds in found.values())


def test_rounds_before_do_not_count(clock: Clock) -> None:
    functions = {"a": clock.takes("a", 64.0, 32.0, 1.0, 2.0, 3.0), "b": clock.takes("b", 0.5)}
    found = interleave(functions, repeats=3)
    assert found["a"].tolist() == [1.0, 2.0, 3.0]
    assert found["b"].tolist() == [0.5, 0.5, 0.5]


def test_the_value_is_the_median_ratio_of_the_rounds() -> None:
    """By round 1, 1, 2.25, .5, 1.5 and 4."""
    seconds, base = np.array([1.0, 2.0, 9.0, 4.0, 3.0, 8.0]), np.array([1.0, 2.0, 4.0, 8.0, 2.0, 2])
    assert compare(seconds, base).value == 1.25


@pytest.mark.parametrize("rounds", range(6, 200))
def test_ranks_cover_enough_and_no_more_than_needed(rounds: int) -> None:
    """Exactly: the median lies between ranks k and n+1−k unless fewer than k are on one side."""

    def coverage(rank: int) -> float:
        return 1 - 2 * sum(math.comb(rounds, i) for i in range(rank)) / 2**rounds

    ratio = compare(np.arange(1.0, rounds + 1), np.ones(rounds))
    rank = int(ratio.low)
    assert ratio.high == rounds + 1 - rank
    assert coverage(rank) >= 0.95
    assert coverage(rank + 1) < 0.955


@pytest.mark.parametrize("truth", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("rounds", ROUNDS)
def test_the_interval_contains_the_truth_as_often_as_it_says(rounds: int, truth: float) -> None:
    """On a machine that slows down for whole rounds, with single outliers besides."""
    rng = np.random.default_rng(rounds)
    hits = 0
    for _ in range(SIMULATIONS):
        machine = np.exp(rng.normal(0, 0.3, rounds))
        noise = np.exp(0.05 * rng.standard_t(2, (2, rounds)))
        ratio = compare(truth * machine * noise[0], machine * noise[1])
        hits += ratio.low <= truth <= ratio.high
    three_sigma = 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS)
    assert hits / SIMULATIONS >= 0.95 - three_sigma


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, *ROUNDS, 1000])
def test_the_interval_stays_within_what_was_seen(rounds: int) -> None:
    rng = np.random.default_rng(0)
    seconds, base = rng.lognormal(size=(2, rounds))
    ratio = compare(seconds, base)
    by_round = seconds / base
    assert by_round.min() <= ratio.low <= ratio.value <= ratio.high <= by_round.max()
    assert {ratio.low, ratio.high} <= set(by_round)


def test_a_function_against_itself() -> None:
    seconds = np.random.default_rng(0).lognormal(size=20)
    assert compare(seconds, seconds) == Ratio(1.0, 1.0, 1.0)
    assert compare(seconds, seconds).undecided


def test_more_rounds_make_it_narrower() -> None:
    rng = np.random.default_rng(0)
    noise = 1 + 0.1 * rng.random((2, 1000))
    few, many = (compare(noise[0, :n], noise[1, :n]) for n in (20, 1000))
    assert many.high - many.low < 0.5 * (few.high - few.low)


@pytest.mark.parametrize(
    ("low", "high", "undecided"),
    [
        (0.9, 1.1, True),
        (0.8, 0.999, False),
        (1.001, 1.2, False),
        (0.9, 1.0, True),
        (1.0, 1.1, True),
    ],
)
def test_undecided(low: float, high: float, undecided: bool) -> None:
    assert Ratio(1.0, low, high).undecided == undecided


def test_spread() -> None:
    """Quartiles of 1 to 5 are 2 and 4, their median is 3."""
    assert spread(np.array([5.0, 1.0, 4.0, 2.0, 3.0])) == pytest.approx(2 / 3)
    assert spread(np.full(7, 0.3)) == 0.0
    seconds = np.random.default_rng(0).lognormal(size=50)
    assert spread(1000 * seconds) == pytest.approx(spread(seconds))


CPU = torch.device("cpu")
SIZE = 300_000_000


def test_memory_that_is_given_back_counts() -> None:
    with memory_peak(CPU) as small:
        pass
    with memory_peak(CPU) as large:
        torch.ones(SIZE // 4)
    assert small.memory > 10_000_000
    assert large.memory >= small.memory + SIZE // 2 or large.memory >= SIZE
    assert small.gpu_memory == large.gpu_memory == 0


assert octnas.nn is not None  # registers thumbnail_resnet

BATCH, SIDE = 2, 32
WIDTHS = (16, 32, 64)
STAGES = ("layer1", "layer2", "layer3")


def thumbnail() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("thumbnail_resnet").train()
    return model


def conv(channels: int, side: int, maps: int, share: float = 1.0) -> int:
    """Bytes of ``maps`` maps, and of the mean and deviation that the norm keeps."""
    return round(4 * (maps * BATCH * channels * side**2 * share + 2 * channels))


def expected(first_stage: float = 1.0) -> dict[str, int]:
    """By hand, for a stem and three stages of one basic block.

    A convolution keeps its input and a norm its own, which is the convolution's output; ReLU works
    in place and keeps what it gives to the next convolution. A shortcut's norm is followed by none.
    """
    stages = {"layer1": 2 * conv(WIDTHS[0], SIDE, 2, first_stage)}
    for index in (1, 2):
        width, side = WIDTHS[index], SIDE // 2**index
        stages[STAGES[index]] = 2 * conv(width, side, 2) + conv(width, side, 1)
    image = 4 * BATCH * 3 * SIDE**2
    head = 4 * BATCH * WIDTHS[-1]
    return {"stem": image + conv(WIDTHS[0], SIDE, 2), **stages, "head": head}


@pytest.mark.parametrize("octave", [False, True])
def test_without_low_channels(octave: bool) -> None:
    model = thumbnail()
    if octave:
        octavize(model, 0.0)
    assert kept_for_backward(model, images(BATCH, 3, SIDE, SIDE)) == expected()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_pooled_maps_are_not_kept(alpha: float) -> None:
    """A low channel is a quarter; what is pooled from the high ones is nowhere counted."""
    model = octavize(thumbnail(), {"layer1*": alpha})
    found = kept_for_backward(model, images(BATCH, 3, SIDE, SIDE))
    assert found == expected(first_stage=1 - 0.75 * alpha)


def test_the_batch_scales_all_but_the_statistics() -> None:
    model = octavize(thumbnail(), 0.5)
    one, two, four = (
        sum(kept_for_backward(model, images(n, 3, SIDE, SIDE)).values()) for n in (1, 2, 4)
    )
    assert four - two == 2 * (two - one)


def test_nothing_stays_behind() -> None:
    """No hook, no gradient, and the same answer twice, also where gradients are switched off."""
    model, x = octavize(thumbnail(), 0.5), images(BATCH, 3, SIDE, SIDE)
    hooks = [list(module._forward_pre_hooks) for module in model.modules()]
    with torch.no_grad():
        first = kept_for_backward(model, x)
    assert kept_for_backward(model, x) == first
    # `octavize` has one of its own.
    assert [list(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture(scope="module")
def resnet50() -> tuple[nn.Module, dict[str, int]]:
    torch.manual_seed(0)
    model = timm.create_model("resnet50").train()
    return model, kept_for_backward(copy.deepcopy(model), images(2, 3, 224, 224))


def stages_only(kept: dict[str, int]) -> int:
    return sum(kept[stage] for stage in STAGES)


@pytest.mark.parametrize(
    ("alpha", "whole", "stages"), [(0.5, 0.71, 0.65), (0.25, 0.88, 0.85), (0.125, 1.0, 1.0)]
)
def test_resnet50_keeps_less(
    resnet50: tuple[nn.Module, dict[str, int]], alpha: float, whole: float, stages: float
) -> None:
    """A share 1 − .75 α of every map in stages 1 to 3, and little beside: at 224, batch 2."""
    vanilla, base = resnet50
    model = octavize(copy.deepcopy(vanilla), alpha)
    found = kept_for_backward(model, images(2, 3, 224, 224))
    assert list(found) == list(base) == ["stem", *STAGES, "layer4", "head"]
    assert found["stem"] == base["stem"]
    assert found["layer4"] == base["layer4"]
    assert stages_only(found) / stages_only(base) < stages
    assert stages_only(found) / stages_only(base) >= 1 - 0.75 * alpha
    assert sum(found.values()) / sum(base.values()) < whole
