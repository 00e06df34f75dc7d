from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from octnas.report.data import ReportData
from octnas.results.front import Candidate, Front
from octnas.results.networks import (
    INCREASING,
    ORIGINAL,
    SEARCHED,
    UNIFORM,
    VANILLA,
    Network,
    Retrained,
    SeedResult,
)
from octnas.space.costs import Budget, ConvShape
from octnas.space.search_space import SearchSpace, Site

ALPHAS = {
    SEARCHED: {"stem": 0.0, "body": 0.5},
    UNIFORM: {"stem": 0.5, "body": 0.5},
    INCREASING: {"stem": 0.0, "body": 1.0},
    VANILLA: {"stem": 0.0, "body": 0.0},
}
EPOCHS = 2


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    grid = (0.0, 0.5, 1.0)
    return SearchSpace(
        backbone="by_hand",
        backbone_args={},
        input_size=(3, 8, 8),
        channel_multiple=1,
        stride_mode="paper",
        alphas=grid,
        sites=(
            Site("stem", 16, 1, grid, 0.0),
            Site("body", 32, 1, grid, 0.5),
            Site("head", 64, 1, (0.0,), 1.0),
        ),
        convs=(
            ConvShape("stem", 3, 16, 1, (3, 3), (8, 8), None, "stem"),
            ConvShape("body", 16, 32, 1, (3, 3), (8, 8), "stem", "body"),
            ConvShape("head", 32, 64, 1, (1, 1), (4, 4), None, "head"),
        ),
        other_macs=640,
        params=3 * 16 * 9 + 16 * 32 * 9 + 32 * 64 + 640,
    )


@pytest.fixture(scope="session")
def make_retrained(space: SearchSpace) -> Callable[..., Retrained]:
    """A retrained network with the given top-1 by seed; the loss is 1 minus that."""

    def make(
        role: str,
        top1: Sequence[float],
        budget: str = "half",
        alphas: Mapping[str, float] | None = None,
    ) -> Retrained:
        architecture = space.architecture(ALPHAS[role] if alphas is None else alphas)
        network = Network(role, budget, architecture, space.cost(architecture))
        runs = tuple(
            SeedResult(
                seed,
                {"val_top1": value, "val_loss": 1 - value, "seconds": 10.0 + seed},
                [
                    {"epoch": epoch, "train_loss": 2.0 / epoch + seed, "lr": 0.1, "time": 0.0}
                    for epoch in range(1, EPOCHS + 1)
                ],
            )
            for seed, value in enumerate(top1)
        )
        return Retrained(network, runs)

    return make


@pytest.fixture(scope="session")
def make_data(
    space: SearchSpace, make_retrained: Callable[..., Retrained]
) -> Callable[..., ReportData]:
    """Report data from top-1 by seed of each role; roles that are not named are not retrained."""

    def make(
        budget: str = "half",
        name: str = "by hand",
        facts: Mapping[str, str] | None = None,
        **top1: Sequence[float],
    ) -> ReportData:
        limit = space.cost(ALPHAS[UNIFORM]).macs
        candidates = tuple(
            Candidate(
                id=space.architecture(alphas).id,
                alphas=dict(space.architecture(alphas).alphas),
                macs=space.cost(alphas).macs,
                loss=0.5 + 0.1 * number,
                metrics={"read_loss": 0.625, "read_top1": 0.75, "rank_top1": 0.76},
                origin="uniform" if role in (UNIFORM, VANILLA) else "nsga2",
                trial=number,
            )
            for number, (role, alphas) in enumerate(ALPHAS.items())
        )
        return ReportData(
            name=name,
            space=space,
            budgets=(Budget(budget, limit, uniform=0.5),),
            candidates=candidates,
            front=Front.of(candidates),
            chosen={budget: candidates[0]},
            retrained=tuple(
                make_retrained(role, values, "" if role == VANILLA else budget)
                for role, values in top1.items()
            ),
            rankings={},
            supernet_history=({"epoch": 1, "train_loss": 2.0, "lr": 0.1},),
            facts={"seeds": "0, 1, 2"} if facts is None else facts,
        )

    return make


@pytest.fixture(scope="session")
def full(make_data: Callable[..., ReportData]) -> ReportData:
    """Everything retrained, three seeds each."""
    return make_data(
        searched=(0.80, 0.82, 0.84),
        uniform=(0.70, 0.72, 0.74),
        increasing=(0.79, 0.82, 0.82),
        vanilla=(0.85, 0.86, 0.87),
    )


@pytest.fixture(scope="session")
def tuned(full: ReportData, make_retrained: Callable[..., Retrained]) -> ReportData:
    """The same, fine-tuned from a trained network, which was evaluated once."""
    original = make_retrained(ORIGINAL, (0.83,), "", ALPHAS[VANILLA])
    (run,) = original.runs
    metrics = {name: value for name, value in run.metrics.items() if name != "seconds"}
    original = replace(original, runs=(replace(run, metrics=metrics, history=()),))
    return replace(full, start="the original", converted=True, original=original)
