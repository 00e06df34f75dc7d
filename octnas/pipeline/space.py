"""Stages 1 and 2: the images, and the search space with its budgets and latency table."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octnas.config import RunConfig
from octnas.data.digits import CLASSES
from octnas.data.image_list import read_summary
from octnas.data.prepare import PROBLEMS_FILE, prepare_images
from octnas.data.settings import DigitsSettings
from octnas.device import choose_device
from octnas.errors import ConfigError, LatencyError, SettingError
from octnas.io.files import read_json, write_json
from octnas.measure.backends import check_device, check_installed
from octnas.measure.settings import LatencySettings
from octnas.nn.search_space import search_space
from octnas.pipeline.run import SPACE_FILE, TABLE_FILE, Run
from octnas.space.budgets import region
from octnas.space.costs import Budget
from octnas.space.latency import LatencyTable
from octnas.space.search_space import SearchSpace


def chosen_settings(run: Run, table: LatencyTable) -> LatencySettings:
    """Settings to measure chosen networks with: those of the table, on the run's device."""
    return LatencySettings(
        backend=table.backend,
        device=run.config.latency.device,
        precision=table.precision,
        batch=table.batch,
        threads=table.threads,
    )


def check_measuring(run: Run, table: LatencyTable | None) -> None:
    """Check that chosen networks can be measured here; the table may be of another device.

    Raises:
        ConfigError: a device that is not available.
        LatencyError: a backend that is not installed, or that the device does not support.
    """
    if table is None or not run.config.latency.measure:
        return
    with run.settings_of("latency"):
        check_device(run.config.latency.device)
    try:
        check_installed(chosen_settings(run, table).backend)
    except SettingError as error:
        raise LatencyError(
            f"latency.table: chosen networks cannot be measured here as for the table of "
            f"{table.device} ({error}); set latency.measure=false to skip measuring"
        ) from None


SCHEMA = 1
# If unknown; the classifier does not count towards the costs of the sites.
_CLASSES = 1000


def space_without_data(config: RunConfig) -> SearchSpace:
    """The search space of an experiment, without reading its data.

    The number of classes is a guess, unless the settings give it or the data is generated.

    Raises:
        SettingError: see `space_of`.
    """
    digits = isinstance(config.data, DigitsSettings)
    return space_of(config, len(CLASSES) if digits else _CLASSES)


def space_of(config: RunConfig, classes: int) -> SearchSpace:
    """The search space of an experiment, with ``classes`` unless the settings give the number.

    Raises:
        SettingError: an invalid setting of the section ``space``.
    """
    settings, given = config.space, config.space.backbone_args
    return search_space(
        settings.backbone,
        settings.input_size,
        settings.alphas,
        backbone_args=given | {"num_classes": given.get("num_classes", classes)},
        fixed=settings.fixed,
        channel_multiple=settings.channel_multiple,
        stride_mode=settings.stride_mode,
    )


def make_space(run: Run) -> None:
    """Trace the backbone, check the budgets, and write ``space.json``."""
    classes = read_summary(run.data.folder).classes
    with run.settings_of():
        choose_device(run.config.device)
    with run.settings_of("space"):
        space = space_of(run.config, classes)
    folder = run.directory.stage("space")
    write_json(folder / SPACE_FILE, space.to_dict())
    if run.config.latency.table:
        table = read_table(Path(run.config.latency.table))
        # Before the supernet is trained.
        check_measuring(run, table)
        # A copy, since the file may move or change.
        write_json(folder / TABLE_FILE, table.to_dict())
    # Also checks the budgets.
    run.levels  # noqa: B018
    budgets = [{**asdict(budget), **_count(run, budget)} for budget in run.budgets]
    write_json(folder / "budgets.json", {"schema": SCHEMA, "budgets": budgets})
    run.progress.say(
        f"space: {space.backbone}, {len(space.searchable)} searchable sites, "
        f"{space.size:.3g} architectures of {space.smallest_macs / 1e6:,.3f} to "
        f"{space.largest_macs / 1e6:,.3f} M MACs"
    )
    for budget in budgets:
        run.progress.say(
            f"  budget {budget['name']}: {'' if budget['bound'] is None else 'up to '}"
            f"{budget['max_macs'] / 1e6:,.3f} M MACs, {'' if budget['exact'] else 'about '}"
            f"{budget['architectures']:.3g} architectures{_steps(budget)}"
        )


def read_table(path: Path) -> LatencyTable:
    """Read a latency table of `octnas latency`.

    Raises:
        LatencyError: naming the file, if it is missing or not a latency table.
    """
    return read_json(path, LatencyTable, error=LatencyError, remedy="make it with `octnas latency`")


def _count(run: Run, budget: Budget) -> dict[str, Any]:
    """How many architectures a budget admits, whether that is exact, and the step of costs."""
    found = region(run.space, budget, run.costs)
    levels = found.levels
    about = {"exact": levels.exact, "step": levels.width, "unit": levels.cost.unit}
    about["rounded"] = "" if levels.limits else " up"
    return {"architectures": found.size, **about}


def _steps(budget: Mapping[str, Any]) -> str:
    if budget["exact"]:
        return ""
    return f" (costs in steps of {budget['step']:,} {budget['unit']}, rounded{budget['rounded']})"


def prepare_data(run: Run) -> None:
    """Check every image, build the cache, and write the list of images."""
    config, folder = run.config, run.directory.stage("data")
    with run.settings_of("data"):
        prepare_images(config.data, config.space.input_size, folder, run.progress)
    summary = read_summary(folder)
    counts = ", ".join(f"{count:,} {part}" for part, count in summary.counts.items() if count)
    run.progress.say(f"data: {summary.classes} classes, images: {counts}")
    if summary.problems:
        count, path = len(summary.problems), folder / PROBLEMS_FILE
        run.progress.say(f"data: skipped {count} images and folders, see {path}")


def check_classes(run: Run, classes: int) -> None:
    """Refuse a classifier that does not fit the data with a ConfigError."""
    given = run.space.backbone_args.get("num_classes")
    if given != classes:
        raise ConfigError(
            f"space.backbone_args.num_classes: found {given}, but the data has {classes} classes; "
            "leave it out to take the data's"
        )
