import numpy as np
import pytest

from octnas.nn.shapes import search_space
from octnas.search.surrogate import Features, Scores, fit
from octnas.space import SearchSpace


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
    assert np.array_equal(Features(space)(some, [1, 2, 3, 4, 5])[:, -1], [1, 2, 3, 4, 5])


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
    scores = [truth(space, alphas) + rng.normal(scale=0.05) for alphas in known]
    predicted = fit(Features(space), Scores(known, scores)).predict(unseen)
    expected = np.array([truth(space, alphas) for alphas in unseen])
    assert expected.std() > 1
    assert np.sqrt(np.mean((predicted - expected) ** 2)) < 0.15


def test_a_second_source_that_knows_is_believed(space: SearchSpace) -> None:
    """A score that the sites do not explain."""
    known, unseen = draws(space, 30, seed=1), draws(space, 50, seed=2)
    rng = np.random.default_rng(3)
    hidden, other = rng.normal(size=30), rng.normal(size=50)
    scores = [truth(space, alphas) + 2 * one for alphas, one in zip(known, hidden, strict=True)]
    expected = [truth(space, alphas) + 2 * one for alphas, one in zip(unseen, other, strict=True)]
    measured = Scores(known, scores)
    with_it = fit(Features(space), measured, hidden.tolist()).predict(unseen, other.tolist())
    without = fit(Features(space), measured).predict(unseen)
    errors = [float(np.mean((found - expected) ** 2)) for found in (with_it, without)]
    assert errors[0] < 0.1 < 2 < errors[1]


def second_source(space: SearchSpace, slope: float, count: int = 30) -> Scores:
    """Another noisy source on a scale of its own."""
    known, rng = draws(space, count, seed=5), np.random.default_rng(6)
    values = [5 + slope * (truth(space, one) + rng.normal(scale=0.3)) for one in known]
    return Scores(known, values)


def test_a_second_source_on_a_scale_of_its_own_helps(space: SearchSpace) -> None:
    known, unseen = draws(space, 20, seed=1), draws(space, 100, seed=2)
    rng = np.random.default_rng(3)
    first = Scores(known, [truth(space, one) + rng.normal(scale=0.3) for one in known])
    expected = np.array([truth(space, alphas) for alphas in unseen])
    errors = [
        float(np.mean((fit(Features(space), first, second=second).predict(unseen) - expected) ** 2))
        for second in (None, second_source(space, 0.1), second_source(space, 10))
    ]
    assert errors[0] > 0.05
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize("kind", ["contradicts", "too few", "all alike"])
def test_a_second_source_that_says_nothing_changes_nothing(space: SearchSpace, kind: str) -> None:
    known = draws(space, 20, seed=1)
    second = second_source(space, -1 if kind == "contradicts" else 1, 3 if kind == "too few" else 9)
    if kind == "all alike":
        second = Scores([known[0]] * 9, second.values)
    first = Scores(known, [truth(space, one) for one in known])
    alone, both = (fit(Features(space), first, second=other) for other in (None, second))
    assert np.array_equal(alone.model.coef_, both.model.coef_)
