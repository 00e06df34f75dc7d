"""What a supernet with ``sampling: learnable`` has learned besides its weights."""

from collections.abc import Mapping

import numpy as np

from octnas.distribution import Distribution, Probabilities, draw_within
from octnas.files import write_json
from octnas.pipeline.opening import Run
from octnas.run_directory import read_document, reading
from octnas.search.proposals import History, Propose

SCHEMA = 1
DISTRIBUTION_FILE = "distribution.json"


def write_distributions(run: Run, probabilities: Mapping[str, Probabilities]) -> None:
    """Write ``supernet/distribution.json``, and say what it comes to.

    Args:
        run: with the budgets.
        probabilities: by site, for each budget by name.
    """
    found = [Distribution.of(run.levels, b, probabilities[b.name]) for b in run.budgets]
    choices = {site.name: list(site.choices) for site in run.space.searchable}
    document = {
        "schema": SCHEMA,
        "choices": choices,
        "budgets": [distribution.to_dict() for distribution in found],
    }
    path = run.directory.stage("supernet") / DISTRIBUTION_FILE
    write_json(path, document)
    run.tracker.artifact("supernet", path)
    for budget, distribution in zip(run.budgets, found, strict=True):
        off = distribution.expected_macs / budget.max_macs - 1
        run.progress.say(
            f"  {budget.name}: expected MACs {off:+.2%} from the budget, the most probable "
            f"architecture inside has {distribution.macs / 1e6:,.3f} M"
        )


def read_distributions(run: Run) -> tuple[Distribution, ...]:
    """Read what `write_distributions` wrote, by budget; nothing where nothing was learned."""
    if run.config.supernet.sampling != "learnable":
        return ()
    path = run.directory.stage("supernet") / DISTRIBUTION_FILE
    with reading(path):
        entries = read_document(path, SCHEMA, "budgets")["budgets"]
        return tuple(Distribution.from_dict(entry) for entry in entries)


def learned_proposals(run: Run) -> Propose:
    """Architectures drawn inside one budget after the other, by seed and number alone."""
    found, budgets, seed = read_distributions(run), run.budgets, run.config.seed

    def propose(history: History) -> dict[str, float]:
        index = history.number % len(budgets)
        rng = np.random.default_rng((seed, history.number))
        return draw_within(run.space, found[index], budgets[index], rng)

    return propose
