"""What is retrained: the searched networks, and the controls that they are held against.

All of it is fixed before any of it is trained, so that nothing is chosen by what val shows.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from octnas.additive import AdditiveCost
from octnas.architecture import Architecture
from octnas.baselines import baseline, searched
from octnas.costs import Budget
from octnas.front import Candidate, Front
from octnas.levels import CostLevels
from octnas.nn.cost import cost
from octnas.nn.plain import plain_network
from octnas.optimum import best_within
from octnas.pipeline.opening import Run
from octnas.pipeline.records import read_candidates, read_chosen
from octnas.pipeline.search import chosen_by
from octnas.results import FRONT, PLAIN, RANDOM, VANILLA, WORST, Network
from octnas.search.surrogate import Features, fit, scores_of

# Draws for different random architectures; and by how much the bounds are then widened.
_TRIES, _WIDER = 50, 1.02
_STREAM = 3


def plan(run: Run) -> list[Network]:
    """What is trained: for each budget the searched network and its controls, then the rest."""
    networks: list[Network] = []
    chosen = read_chosen(run)
    for budget in run.budgets:
        found = searched(run.space, budget, run.space.architecture(chosen[budget.name].alphas))
        networks.append(found)
        networks += _controls(run, budget, chosen[budget.name], found)
    if run.config.retrain.select == "front":
        networks += _front(run, {network.architecture.id for network in networks})
    if VANILLA in run.config.retrain.baselines:
        networks.append(baseline(run.space, VANILLA, run.budgets[-1], 0))
    return networks


def _controls(run: Run, budget: Budget, chosen: Candidate, found: Network) -> Iterator[Network]:
    """The controls of one budget, in the order of the settings."""
    bounded = None if budget.bound is None else run.costs[budget.bound.cost]
    at_least = found.cost.macs if bounded is None else bounded.of(chosen.alphas)
    for role in run.config.retrain.baselines:
        if role == VANILLA:
            continue
        if role in PLAIN:
            yield from _plain(run, role, budget, found)
        elif role == RANDOM:
            yield from _random(run, budget, bounded, at_least, found)
        elif role == WORST:
            yield _worst(run, budget, bounded, at_least)
        else:
            yield baseline(run.space, role, budget, at_least, bounded)


def _plain(run: Run, role: str, budget: Budget, found: Network) -> Iterator[Network]:
    architecture = plain_network(role, found.architecture, found.cost.macs)
    if architecture is None:
        run.progress.say(
            f"retrain: {budget.name}: no {role} {found.architecture.backbone} has at least "
            f"{found.cost.macs / 1e6:,.3f} M MACs and fewer than the whole; left out"
        )
        return
    yield Network(role, budget.name, architecture, cost(architecture).cost)


def _random(
    run: Run, budget: Budget, bounded: AdditiveCost | None, at_least: int, found: Network
) -> Iterator[Network]:
    """Different architectures, drawn evenly among those that cost no less than the searched one."""
    space, settings = run.space, run.config.retrain
    levels, upper = _levels(run, bounded), _upper(budget)
    rng = np.random.default_rng((_STREAM, settings.seed, run.budgets.index(budget)))
    drawn: dict[str, Architecture] = {}
    while len(drawn) < settings.randoms and upper < 2 * levels.dearest:
        for _ in range(_TRIES):
            one = space.architecture(levels.sample(rng, at_least, upper, by_count=True))
            if one.id != found.architecture.id:
                drawn.setdefault(one.id, one)
        upper = round(_WIDER * upper)
    for number, one in enumerate(islice(drawn.values(), settings.randoms), start=1):
        yield Network(RANDOM, budget.name, one, space.cost(one), number)


def _worst(run: Run, budget: Budget, bounded: AdditiveCost | None, at_least: int) -> Network:
    """What a model of all scores finds worst inside the budget, exactly."""
    model = fit(Features(run.space, pairs=True), scores_of(read_candidates(run))).mean
    levels = _levels(run, bounded)
    architecture = run.space.architecture(
        best_within(levels, model.scores, at_least, max(_upper(budget), at_least))
    )
    return Network(WORST, budget.name, architecture, run.space.cost(architecture))


def _front(run: Run, known: set[str]) -> Iterator[Network]:
    """The candidates that no other beats, by expected loss and the objective, in any budget."""
    candidates = [
        one for one in read_candidates(run) if any(one.fits(budget) for budget in run.budgets)
    ]
    front = Front.of(candidates, chosen_by(run), run.config.objective)
    others = [one for one in front.candidates if one.id not in known]
    for number, one in enumerate(others, start=1):
        architecture = run.space.architecture(one.alphas)
        yield Network(FRONT, "", architecture, run.space.cost(architecture), number)


def _levels(run: Run, bounded: AdditiveCost | None) -> CostLevels:
    """The architectures by what a budget bounds."""
    return run.levels if bounded is None else CostLevels(run.space, cost=bounded)


def _upper(budget: Budget) -> int:
    return budget.max_macs if budget.bound is None else budget.bound.upper
