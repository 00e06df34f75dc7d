"""Stage 2: the search space, its costs and its budgets, before anything is trained."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octnas.config import RunConfig
from octnas.costs import Budget
from octnas.data.digits import CLASSES
from octnas.data.image_list import read_summary
from octnas.data.settings import DigitsSettings
from octnas.device import choose_device
from octnas.errors import LatencyError
from octnas.files import write_json
from octnas.latency import LatencyTable
from octnas.levels import CostLevels
from octnas.nn.shapes import search_space
from octnas.pipeline.measuring import check_measuring
from octnas.pipeline.opening import SPACE_FILE, TABLE_FILE, Run
from octnas.run_directory import read_json
from octnas.space import SearchSpace

SCHEMA = 1
# Where nothing says how many: the classifier is no part of what sites cost.
_CLASSES = 1000


def space_without_data(config: RunConfig) -> SearchSpace:
    """The search space of an experiment whose data is not looked at.

    The number of classes is a guess, unless the settings say it or the data is made here.

    Raises:
        SettingError: see `space_of`.
    """
    digits = isinstance(config.data, DigitsSettings)
    return space_of(config, len(CLASSES) if digits else _CLASSES)


def space_of(config: RunConfig, classes: int) -> SearchSpace:
    """The search space of an experiment; the number of classes is the data's unless given.

    Args:
        config: the experiment.
        classes: of its data.

    Raises:
        SettingError: a setting of the section ``space`` that turns out to be wrong.
    """
    settings = config.space
    args = dict(settings.backbone_args)
    if "num_classes" not in args:
        args["num_classes"] = classes
    return search_space(
        settings.backbone,
        settings.input_size,
        settings.alphas,
        backbone_args=args,
        fixed=settings.fixed,
        channel_multiple=settings.channel_multiple,
        stride_mode=settings.stride_mode,
    )


def make_space(run: Run) -> None:
    """Trace the backbone, refuse budgets that cannot be met, and write ``space.json``."""
    classes = int(read_summary(run.data.folder)["classes"])
    with run.settings_of():
        choose_device(run.config.device)
    with run.settings_of("space"):
        space = space_of(run.config, classes)
    folder = run.directory.stage("space")
    write_json(folder / SPACE_FILE, space.to_dict())
    if run.config.latency.table:
        table = read_table(Path(run.config.latency.table))
        # Now, and not after the search.
        check_measuring(run, table)
        # The run goes on with what it began with, wherever the file is then.
        write_json(folder / TABLE_FILE, table.to_dict())
    levels = run.levels
    budgets = [{**asdict(budget), **_count(run, levels, budget)} for budget in run.budgets]
    write_json(folder / "budgets.json", {"schema": SCHEMA, "budgets": budgets})
    run.progress.say(
        f"space: {space.backbone}, {len(space.searchable)} searchable sites, "
        f"{space.size:.3g} architectures of {space.cheapest_macs / 1e6:,.3f} to "
        f"{space.dearest_macs / 1e6:,.3f} M MACs"
    )
    for budget in budgets:
        run.progress.say(
            f"  budget {budget['name']}: {'' if budget['bound'] is None else 'up to '}"
            f"{budget['max_macs'] / 1e6:,.3f} M MACs, {'' if budget['exact'] else 'about '}"
            f"{budget['architectures']:.3g} architectures{_steps(budget)}"
        )


def read_table(path: Path) -> LatencyTable:
    """Read a file of `octnas latency`'s.

    Raises:
        LatencyError: it is missing or something else; the file is named.
    """
    if not path.is_file():
        raise LatencyError(f"{path}: no such file; write it with `octnas latency`")
    try:
        return LatencyTable.from_dict(read_json(path))
    except LatencyError as error:
        raise LatencyError(f"{path}: {error}") from None


def _count(run: Run, levels: CostLevels, budget: Budget) -> dict[str, Any]:
    """How many architectures a budget admits, whether that is exact, and how costs were counted."""
    ends = (budget.min_macs, budget.max_macs)
    if budget.bound is not None:
        levels = CostLevels(run.space, cost=run.costs[budget.bound.cost])
        ends = (budget.bound.lower, budget.bound.upper)
    about = {"exact": levels.exact, "step": levels.width, "unit": levels.cost.unit}
    return {"architectures": levels.count(*ends), **about}


def _steps(budget: Mapping[str, Any]) -> str:
    if budget["exact"]:
        return ""
    return f" (costs in steps of {budget['step']:,} {budget['unit']}, rounded up)"
