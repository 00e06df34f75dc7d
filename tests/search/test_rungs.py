from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from octnas.front import Candidate, Front
from octnas.search.local import run_local
from octnas.search.rungs import Rung, expected_loss, rung_of
from tests.search.conftest import SETTINGS, Make, table
from tests.search.small import loss_of


def candidate(macs: int, loss: float, first: float, share: float = 1.0) -> Candidate:
    metrics = {"rank_first_loss": first, "rank_share": share}
    return Candidate(f"{macs}-{loss}", {}, macs, loss, metrics)


def test_the_limit_is_what_may_reach_the_front_by_chance() -> None:
    higher = [0.1, 0.3] * 5
    told = [candidate(10 + n, 2 - n / 10, 2 - n / 10 + by) for n, by in enumerate(higher)]
    told.append(candidate(1, 0.0, 0.0, share=0.25))
    rung = rung_of(told, lambda one: one.macs)
    assert rung is not None
    assert rung.offset == pytest.approx(0.2)
    assert rung.margin == pytest.approx(2 * np.std(higher, ddof=1))
    assert rung.limit(9) == np.inf
    assert rung.limit(12) == pytest.approx(1.8 + rung.offset + rung.margin)
    assert rung.limit(99) == pytest.approx(1.1 + rung.offset + rung.margin)


def test_too_few_say_nothing() -> None:
    assert rung_of([candidate(n, 1, 1) for n in range(7)], lambda one: one.macs) is None
    assert rung_of([Candidate(str(n), {}, n, 1.0) for n in range(9)], lambda one: one.macs) is None


def test_a_loss_on_some_images_is_brought_to_all() -> None:
    rung = Rung(0.25, 0.1, ())
    assert expected_loss({"loss": 2.0, "share": 0.5}, rung) == 1.75
    assert expected_loss({"loss": 2.0, "share": 1.0}, rung) == 2.0
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
