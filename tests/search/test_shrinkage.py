from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octnas.front import Candidate
from octnas.search.shrinkage import EXPECTED, HALF, with_expected_losses
from octnas.search.surrogate import Features
from octnas.space import SearchSpace

COUNT = 300
OWN, NOISE = 0.02, 0.03
"""Standard deviations, of the logarithm: a candidate's own, and one half's by its images."""


def additive(alphas: Mapping[str, float]) -> float:
    return 1 + 0.05 * sum(number * alpha for number, alpha in enumerate(alphas.values()))


def drawn(
    space: SearchSpace, own: float, noise: float, seed: int = 0, count: int = COUNT
) -> tuple[list[Candidate], np.ndarray]:
    """Candidates as they are measured on two halves, and the logarithms without any luck."""
    rng, found, truths = np.random.default_rng(seed), {}, []
    while len(found) < count:
        alphas = {site.name: float(rng.choice(site.choices)) for site in space.sites}
        identity = space.architecture(alphas).id
        if identity in found:
            continue
        truth = np.log(additive(alphas)) + rng.normal(scale=own)
        halves = np.exp(truth + rng.normal(scale=noise, size=2))
        metrics = {HALF: float(halves[0])}
        found[identity] = Candidate(identity, alphas, 1, float(halves.mean()), metrics)
        truths.append(truth)
    return list(found.values()), np.array(truths)


def errors(candidates: list[Candidate], truths: np.ndarray) -> tuple[float, float]:
    """Mean squared errors of measured and of expected losses, in logarithms."""
    measured = np.log([one.loss for one in candidates])
    expected = np.log([one.metrics[EXPECTED] for one in candidates])
    return float(np.mean((measured - truths) ** 2)), float(np.mean((expected - truths) ** 2))


def test_expected_losses_are_nearer_to_the_truth(space: SearchSpace) -> None:
    candidates, truths = drawn(space, OWN, NOISE)
    found, own = with_expected_losses(Features(space, pairs=True), candidates)
    share = OWN**2 / (OWN**2 + NOISE**2 / 2)
    assert own == pytest.approx(share, abs=0.12)
    measured, expected = errors(found, truths)
    # What is left of the variance of two halves' mean after shrinking by that share.
    assert measured == pytest.approx(NOISE**2 / 2, rel=0.25)
    assert expected == pytest.approx(share * NOISE**2 / 2, rel=0.3)
    assert [one.loss for one in found] == [one.loss for one in candidates]


def test_without_luck_losses_stay_and_without_character_the_model_is_believed(
    space: SearchSpace,
) -> None:
    features = Features(space, pairs=True)
    still, own = with_expected_losses(features, drawn(space, OWN, 0)[0])
    assert own == pytest.approx(1)
    for one in still:
        assert one.metrics[EXPECTED] == pytest.approx(one.loss)
    candidates, truths = drawn(space, 0, NOISE)
    found, own = with_expected_losses(features, candidates)
    assert own is not None
    assert own < 0.15
    measured, expected = errors(found, truths)
    assert expected < measured / 4


def test_too_few_keep_their_loss(space: SearchSpace) -> None:
    found, own = with_expected_losses(
        Features(space, pairs=True), drawn(space, OWN, NOISE, count=15)[0]
    )
    assert own is None
    assert all(one.metrics[EXPECTED] == one.loss for one in found)


def test_what_was_measured_on_fewer_images_is_believed_less(space: SearchSpace) -> None:
    """The same candidate, measured on all images and on a quarter, with the same loss."""
    features, (candidates, _) = Features(space, pairs=True), drawn(space, OWN, NOISE)
    odd = max(candidates, key=lambda one: one.loss / additive(one.alphas))
    part = replace(odd, id="part", metrics={"rank_share": 0.25})
    found, own = with_expected_losses(features, [*candidates, part])
    assert own is not None
    by_id = {one.id: one for one in found}
    kept = [np.log(by_id[name].metrics[EXPECTED] / odd.loss) for name in (odd.id, "part")]
    # What is taken away: 1 − own of the residual, and 1 − own / (own + (1 − own) / share).
    assert kept[1] / kept[0] == pytest.approx((1 - own / (own + (1 - own) * 4)) / (1 - own))


@given(st.integers(0, 1000), st.floats(0, 0.1), st.floats(0, 0.1))
def test_the_share_is_one_and_order_does_not_matter(seed: int, own: float, noise: float) -> None:
    candidates, _ = drawn(small(), own, noise, seed, count=20)
    features = Features(small())
    found, share = with_expected_losses(features, candidates)
    assert share is not None
    assert 0 <= share <= 1
    back, other = with_expected_losses(features, candidates[::-1])
    assert other == pytest.approx(share, abs=1e-6)
    for one, again in zip(found, back[::-1], strict=True):
        assert one.metrics[EXPECTED] == pytest.approx(again.metrics[EXPECTED])


def small() -> SearchSpace:
    from octnas.nn.shapes import search_space

    args = {"num_classes": 2, "channels": [2, 4], "layers": [1, 1]}
    return search_space("thumbnail_resnet", (1, 8, 8), (0, 0.5, 1), backbone_args=args, fixed={})
