from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octnas.nn.search_space import search_space
from octnas.results.front import Candidate, Front
from octnas.search.study import run_local
from octnas.search.surrogate import (
    EXPECTED,
    HALF,
    Features,
    Screening,
    expected_loss,
    fit,
    with_expected_losses,
)
from octnas.space.search_space import SearchSpace
from tests.search.conftest import SETTINGS, Make, table
from tests.search.small import loss_of


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    args = {"num_classes": 10, "channels": [4, 8, 8]}
    choices = (0, 0.5, 1)
    return search_space("thumbnail_resnet", (1, 16, 16), choices, backbone_args=args, fixed={})


def draws(space: SearchSpace, count: int, seed: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    return [
        {site.name: float(rng.choice(site.choices)) for site in space.sites} for _ in range(count)
    ]


def truth(space: SearchSpace, alphas: dict[str, float]) -> float:
    """Additive in α, with a price for no high channel in the stem."""
    weights = np.linspace(1, -0.5, len(space.sites))
    return 2 + float(weights @ list(alphas.values())) + 3 * (alphas["stem"] == 1)


def test_features_are_alphas_what_is_lost_and_the_share_of_macs(space: SearchSpace) -> None:
    some = draws(space, 5, seed=0)
    found = Features(space)(some)
    count = len(space.searchable)
    assert found.shape == (5, 2 * count + 1)
    assert np.array_equal(found[:, :count], [list(alphas.values()) for alphas in some])
    assert np.array_equal(found[:, count:-1], found[:, :count] == 1)
    macs = [space.cost(alphas).macs - space.other_macs for alphas in some]
    shares = np.array(macs) / space.vanilla_macs
    assert np.allclose(found[:, -1], shares)


def test_what_cannot_be_lost_has_no_feature(space: SearchSpace) -> None:
    narrow = search_space(
        space.backbone,
        space.input_size,
        (0, 0.5),
        backbone_args=space.backbone_args,
        fixed={},
    )
    found = Features(narrow)([{}])
    assert found.shape == (1, len(narrow.searchable) + 1)


def test_a_few_measurements_predict_the_others(space: SearchSpace) -> None:
    known, unseen = draws(space, 40, seed=1), draws(space, 100, seed=2)
    rng = np.random.default_rng(3)
    losses = np.exp([truth(space, alphas) + rng.normal(scale=0.05) for alphas in known])
    features = Features(space)
    predicted = fit(features, features(known), losses).predict(features(unseen))
    expected = np.array([truth(space, alphas) for alphas in unseen])
    assert expected.std() > 1
    assert np.sqrt(np.mean((predicted - expected) ** 2)) < 0.15


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


@settings(max_examples=40)
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


@cache
def small() -> SearchSpace:
    args = {"num_classes": 2, "channels": [2, 4], "layers": [1, 1]}
    return search_space("thumbnail_resnet", (1, 8, 8), (0, 0.5, 1), backbone_args=args, fixed={})


def candidate(macs: int, loss: float, first: float, share: float = 1.0) -> Candidate:
    metrics = {"rank_first_loss": first, "rank_share": share}
    return Candidate(f"{macs}-{loss}", {}, macs, loss, metrics)


def test_the_limit_is_what_may_reach_the_front_by_chance() -> None:
    higher = [0.1, 0.3] * 5
    told = [candidate(10 + n, 2 - n / 10, 2 - n / 10 + by) for n, by in enumerate(higher)]
    told.append(candidate(1, 0.0, 0.0, share=0.25))
    screening = Screening.after(told, lambda one: one.macs)
    assert screening is not None
    assert screening.offset == pytest.approx(0.2)
    assert screening.margin == pytest.approx(2 * np.std(higher, ddof=1))
    assert screening.limit(9) == np.inf
    assert screening.limit(12) == pytest.approx(1.8 + screening.offset + screening.margin)
    assert screening.limit(99) == pytest.approx(1.1 + screening.offset + screening.margin)


def test_too_few_say_nothing() -> None:
    assert Screening.after([candidate(n, 1, 1) for n in range(7)], lambda one: one.macs) is None
    assert (
        Screening.after([Candidate(str(n), {}, n, 1.0) for n in range(9)], lambda one: one.macs)
        is None
    )


def test_a_loss_on_some_images_is_brought_to_all() -> None:
    screening = Screening(0.25, 0.1, ())
    assert expected_loss({"loss": 2.0, "share": 0.5}, screening) == 1.75
    assert expected_loss({"loss": 2.0, "share": 1.0}, screening) == 2.0
    assert expected_loss({"loss": 2.0}, None) == 2.0


def noisy(alphas: Mapping[str, float], limit: float) -> dict[str, float]:
    """As `octnas.training.scoring.Scorer`, with first images that are harder."""
    loss = loss_of(alphas)["loss"]
    seed = int(sum((n + 1) * alpha for n, alpha in enumerate(alphas.values())) * 4)
    first = loss + 0.5 + float(np.random.default_rng(seed).normal(scale=0.1))
    whole = first <= limit
    return {"loss": loss if whole else first, "first_loss": first, "share": 1.0 if whole else 0.25}


def test_the_front_is_found_with_fewer_images(make_driver: Make) -> None:
    """And the same one by as many workers as there may be, since nothing told later counts."""
    settings = replace(SETTINGS, trials=80, sampler="surrogate")
    driver, whole = make_driver(settings), make_driver(settings, folder="whole")
    run_local(driver, noisy)
    run_local(whole, lambda alphas, _: noisy(alphas, np.inf))
    shares = Counter(one.metrics["rank_share"] for one in driver.candidates())
    assert set(shares) == {0.25, 1.0}
    assert shares[0.25] > 10
    found = [one for one in driver.candidates() if one.metrics["rank_share"] == 1]
    reference = (float(max(one.macs for one in whole.candidates())), 30.0)
    areas = [Front.of(some).hypervolume(reference) for some in (found, whole.candidates())]
    assert areas[0] > 0.99 * areas[1]
    again = make_driver(settings, folder="parts")
    jobs = []
    while not again.done:
        while (job := again.ask()) is not None:
            jobs.append(job)
        for job in reversed(jobs):
            again.tell(job.number, noisy(job.alphas, job.limit))
        jobs.clear()
    assert table(again.candidates()) == table(driver.candidates())
