"""Tests."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octnas.results.front import Candidate, Front, best_under, hypervolume_curve
from octnas.space.costs import Budget

LOSSES = st.integers(0, 8).map(lambda value: value / 4)


def candidate(identity: str, macs: int, loss: float) -> Candidate:
    return Candidate(identity, {"layer1": 0.5}, macs, loss)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """On a coarse grid, so that ties and equals are frequent."""
    points = draw(st.lists(st.tuples(st.integers(1, 8), LOSSES), max_size=20))
    names = draw(st.permutations(range(len(points))))
    return [
        candidate(f"{name:02}", macs, loss)
        for name, (macs, loss) in zip(names, points, strict=True)
    ]


def dominates(a: Candidate, b: Candidate) -> bool:
    """At least as good in both, better in one; of equals the smaller id."""
    no_worse = a.macs <= b.macs and a.loss <= b.loss
    return no_worse and ((a.macs, a.loss) != (b.macs, b.loss) or a.id < b.id)


@given(candidates())
def test_front_is_what_brute_force_finds(given_candidates: list[Candidate]) -> None:
    front = Front.of(iter(given_candidates)).candidates
    expected = [b for b in given_candidates if not any(dominates(a, b) for a in given_candidates)]
    assert list(front) == sorted(expected, key=lambda c: c.macs)
    macs, losses = [c.macs for c in front], [c.loss for c in front]
    assert macs == sorted(set(macs))
    assert losses == sorted(set(losses), reverse=True)


@given(candidates())
def test_front_of_a_front_is_itself(given_candidates: list[Candidate]) -> None:
    front = Front.of(given_candidates)
    assert Front.of(front.candidates) == front
    assert Front.of(reversed(given_candidates)) == front


@given(candidates(), st.integers(0, 10), st.integers(0, 10))
def test_hypervolume_is_the_count_of_dominated_cells(
    given_candidates: list[Candidate], macs_end: int, loss_end: int
) -> None:
    area = Front.of(given_candidates).hypervolume((macs_end, loss_end / 4))
    cells = sum(
        any(c.macs <= macs and c.loss <= loss / 4 for c in given_candidates)
        for macs in range(macs_end)
        for loss in range(loss_end)
    )
    assert area == pytest.approx(cells / 4, abs=1e-12)


def test_hypervolume_agrees_with_random_points() -> None:
    rng = np.random.default_rng(0)
    macs, losses = rng.integers(1, 1000, 30), rng.uniform(0, 3, 30)
    given_candidates = [
        candidate(str(i), int(m), float(x))
        for i, (m, x) in enumerate(zip(macs, losses, strict=True))
    ]
    points = rng.uniform((0, 0), (900, 2), (100_000, 2))
    beaten = ((macs <= points[:, :1]) & (losses <= points[:, 1:])).any(axis=1)
    share = Front.of(given_candidates).hypervolume((900, 2.0)) / (900 * 2.0)
    assert 0.2 < share < 0.999
    assert share == pytest.approx(beaten.mean(), abs=5 * math.sqrt(0.25 / len(points)))


@given(candidates(), st.integers(1, 10), st.integers(1, 10))
def test_hypervolumes_are_those_of_all_until_then(
    given_candidates: list[Candidate], macs_end: int, loss_end: int
) -> None:
    reference = (float(macs_end), loss_end / 4)
    assert list(hypervolume_curve(iter(given_candidates), reference)) == [
        Front.of(given_candidates[:count]).hypervolume(reference)
        for count in range(1, len(given_candidates) + 1)
    ]


def test_front_of_nothing() -> None:
    assert Front.of([]) == Front(())
    assert Front(()).hypervolume((10, 1.0)) == 0


@given(candidates(), st.integers(0, 9), st.integers(0, 9))
def test_best_under_is_what_brute_force_finds(
    given_candidates: list[Candidate], low: int, high: int
) -> None:
    best = best_under(given_candidates, Budget("some", high, low))
    inside = [c for c in given_candidates if low <= c.macs <= high]
    if best is None:
        assert not inside
        return
    assert best in inside
    assert (best.loss, best.macs, best.id) == min((c.loss, c.macs, c.id) for c in inside)


@pytest.mark.parametrize("order", [1, -1])
def test_a_loss_that_is_not_a_number_is_never_best(order: int) -> None:
    diverged, fine = candidate("a", 5, math.nan), candidate("b", 7, 2.0)
    given_candidates = [diverged, fine][::order]
    assert Front.of(given_candidates).candidates == (fine,)
    assert best_under(given_candidates, Budget("some", 10)) == fine
    assert best_under([diverged], Budget("some", 10)) is None


def test_candidate_round_trip() -> None:
    made = Candidate("id", {"a": 0.5}, 12, 0.25, {"rank_top1": 0.75}, origin="tpe", trial=3)
    assert Candidate.from_dict(json.loads(json.dumps(made.to_dict()))) == made
