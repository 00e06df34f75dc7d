"""Stage 5: the chosen networks and their baselines, trained or fine-tuned.

All networks are fixed before any of them is trained, so that val does not influence the choice.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from importlib.util import find_spec
from itertools import islice
from math import lcm
from pathlib import Path

import numpy as np

from octnas.data.images import open_images
from octnas.device import choose_device
from octnas.errors import RunDirectoryError, UnsupportedModelError, require
from octnas.io.files import read_json, write_json
from octnas.nn.cost import cost
from octnas.nn.plain import plain_network
from octnas.nn.pruned import pruned_network
from octnas.nn.weights import save_weights
from octnas.pipeline.convert import sorted_weights
from octnas.pipeline.original import called
from octnas.pipeline.records import (
    PARENT,
    begin_tracking,
    read_candidates,
    read_chosen,
    write_results,
)
from octnas.pipeline.run import Run
from octnas.pipeline.search import chosen_by
from octnas.pipeline.space import check_classes
from octnas.pipeline.supernet import trained_supernet
from octnas.report.style import network_name, plural
from octnas.results.front import Candidate, Front
from octnas.results.networks import (
    FRONT,
    ORIGINAL,
    PLAIN,
    PRUNED,
    RANDOM,
    SEARCHED,
    VANILLA,
    WORST,
    Network,
    Retrained,
    SeedResult,
    baseline,
    searched,
)
from octnas.results.validation_log import VALIDATION_LOG
from octnas.search.surrogate import Features, fit_candidates
from octnas.settings import flatten
from octnas.space.architecture import Architecture
from octnas.space.budgets import Costs, Region, costs_of, region
from octnas.space.cost_table import Limit
from octnas.space.costs import Budget
from octnas.space.optimum import best_within
from octnas.training.loop import Log, check_recipe
from octnas.training.settings import RetrainSettings
from octnas.training.standalone import (
    OnEpoch,
    Original,
    Training,
    evaluate_original,
    pruned_weights,
    train_all,
    train_one,
    training_folder,
    unfinished,
)

SCHEMA = 1
PLAN_FILE = "plan.json"
STOPPED_FILE = "stopped.json"
PRUNED_FOLDER = "pruned"
_HARDWARE = 8  # channels of which fewer are slow
_STEPS = 32  # of α in baselines
# Draws of random architectures before the upper bound is widened, and by how much.
_TRIES, _WIDER = 50, 1.02
_STREAM = 3
# Units of what pruned networks are held against, by cost.
_PRUNED_TO = {
    "macs": "M MACs",
    "activation": "MB of activations",
    "peak": "MB of memory at the peak",
}


def check_pruning(run: Run) -> None:
    """Raise a `ConfigError` if networks are to be pruned and Torch-Pruning is not installed."""
    planned = (run.directory.stage("retrain") / PLAN_FILE).exists()
    if PRUNED in run.config.retrain.baselines and not planned:
        with run.settings_of("retrain"):
            there = find_spec("torch_pruning") is not None
            allowed = 'pruned only with Torch-Pruning: pip install "octnas[pruning]"'
            require(there, "baselines", PRUNED, allowed)


def plan(run: Run) -> list[Network]:
    """The networks to train: each budget's searched one and its baselines, then the others."""
    networks: list[Network] = []
    chosen = read_chosen(run)
    for budget in run.budgets:
        found = searched(run.space, budget, run.space.architecture(chosen[budget.name].alphas))
        networks.append(found)
        networks += _baselines(run, budget, chosen[budget.name], found)
    if run.config.retrain.select == "front":
        networks += _front(run, {network.architecture.id for network in networks})
    if VANILLA in run.config.retrain.baselines:
        networks.append(baseline(run.space, VANILLA, run.budgets[-1], 0))
    return networks


def _baselines(run: Run, budget: Budget, chosen: Candidate, found: Network) -> Iterator[Network]:
    """The baselines of one budget, in the order of the settings."""
    # MACs alone allow baselines between the choices of α.
    plain, cost, limits = budget.macs_alone, None, list[Limit]()
    at_least = found.cost.macs if plain else run.costs[budget.first.cost].of(chosen.alphas)
    if not plain:
        costs = _between_choices(run, budget)
        cost = costs[budget.first.cost]
        limits = [(costs[bound.cost], bound.upper) for bound in budget.further]
    for role in run.config.retrain.baselines:
        if role == VANILLA:
            continue
        if role == PRUNED:
            yield from _pruned(run, budget, chosen)
        elif role in PLAIN:
            yield from _plain(run, role, budget, found)
        elif role == RANDOM:
            yield from _random(run, budget, chosen, found)
        elif role == WORST:
            yield _worst(run, budget, chosen)
        else:
            yield baseline(run.space, role, budget, at_least, cost, limits)


def _between_choices(run: Run, budget: Budget) -> Costs:
    """What a budget bounds, also between the choices of α where that is known."""
    names = {bound.cost for bound in budget.bounds}
    if "latency" in names:
        # A table has the choices alone.
        return run.costs
    steps = _STEPS // 4 if "peak" in names else _STEPS  # the peak is tabulated by up to four sites
    return costs_of(run.space.refined(steps), names=names)


def _plain(run: Run, role: str, budget: Budget, found: Network) -> Iterator[Network]:
    architecture = plain_network(role, found.architecture, found.cost.macs)
    if architecture is None:
        run.progress.say(
            f"retrain: {budget.name}: no {role} {found.architecture.backbone} has at least "
            f"{found.cost.macs / 1e6:,.3f} M MACs but fewer than vanilla; left out"
        )
        return
    yield Network(role, budget.name, architecture, cost(architecture).cost)


def _pruned(run: Run, budget: Budget, chosen: Candidate) -> Iterator[Network]:
    """The original with fewer channels; the weights that are left of it are written.

    It costs at least as much as the searched network; or, with several bounds, as the tightest.
    """
    whole = original(run)
    latency = any(bound.cost == "latency" for bound in budget.bounds)
    multiple = lcm(run.space.channel_multiple, _HARDWARE if latency else 1)
    reaches = {bound.cost: bound.upper for bound in budget.bounds if bound.cost != "latency"}
    if not budget.further:
        # The latency of other widths is not in the table.
        by = "macs" if latency else budget.first.cost
        reaches = {by: run.costs[by].of(chosen.alphas)}
    target = "at least " + " or ".join(
        f"{least / 1e6:,.3f} {_PRUNED_TO[name]}" for name, least in reaches.items()
    )
    try:
        pruned = pruned_network(whole.architecture, whole.weights, reaches, multiple)
    except UnsupportedModelError as error:
        run.progress.say(f"retrain: {budget.name}: no pruned network ({error}); left out")
        return
    if pruned is None:
        run.progress.say(
            f"retrain: {budget.name}: no channels of {run.space.backbone} can be removed so that "
            f"it has {target}; no pruned network"
        )
        return
    save_weights(pruned.model, pruned_weights(_pruned_folder(run), pruned.architecture))
    run.progress.say(
        f"retrain: {budget.name}: pruned; {100 * pruned.share:.1f} % of each site's channels are "
        f"left, so that it has {target}"
    )
    yield Network(PRUNED, budget.name, pruned.architecture, cost(pruned.architecture).cost)


def _random(run: Run, budget: Budget, chosen: Candidate, found: Network) -> Iterator[Network]:
    """Distinct architectures, drawn uniformly from those that cost at least the searched one."""
    space, settings = run.space, run.config.retrain
    inside = region(space, budget, run.costs)
    levels, upper, at_least = inside.levels, inside.high, _floor(inside, budget, chosen)
    rng = np.random.default_rng((_STREAM, settings.seed, run.budgets.index(budget)))
    drawn: dict[str, Architecture] = {}
    while len(drawn) < settings.randoms and upper < 2 * levels.largest:
        for _ in range(_TRIES):
            one = space.architecture(levels.sample(rng, at_least, upper, by_count=True))
            if one.id != found.architecture.id:
                drawn.setdefault(one.id, one)
        upper = round(_WIDER * upper)
    if len(drawn) < settings.randoms:
        run.progress.say(
            f"retrain: {budget.name}: found {len(drawn)} of {settings.randoms} random networks"
        )
    for number, one in enumerate(islice(drawn.values(), settings.randoms), start=1):
        yield Network(RANDOM, budget.name, one, space.cost(one), number)


def _worst(run: Run, budget: Budget, chosen: Candidate) -> Network:
    """The exact minimum, within the budget, of a surrogate fitted to all scores."""
    model = fit_candidates(Features(run.space, pairs=True), read_candidates(run)).mean
    inside = region(run.space, budget, run.costs)
    at_least = _floor(inside, budget, chosen)
    architecture = run.space.architecture(
        best_within(inside.levels, model.scores, at_least, max(inside.high, at_least))
    )
    return Network(WORST, budget.name, architecture, run.space.cost(architecture))


def _floor(inside: Region, budget: Budget, chosen: Candidate) -> int:
    """The least that a baseline may cost: as much as the searched network, if one bound decides.

    Not under peak memory: what it leaves alone costs the most MACs there are.
    """
    decides = not budget.further and budget.first.cost != "peak"
    return inside.levels.cost.of(chosen.alphas) if decides else inside.low


def _front(run: Run, known: set[str]) -> Iterator[Network]:
    """The candidates within any budget that are non-dominated in expected loss and objective."""
    candidates = [
        one for one in read_candidates(run) if any(one.fits(budget) for budget in run.budgets)
    ]
    front = Front.of(candidates, chosen_by(run), run.config.objective)
    others = [one for one in front.candidates if one.id not in known]
    for number, one in enumerate(others, start=1):
        architecture = run.space.architecture(one.alphas)
        yield Network(FRONT, "", architecture, run.space.cost(architecture), number)


def tracking_key(network: Network) -> str:
    """The key of a network's MLflow run."""
    return f"retrain/{network.slug}"


def retrain(run: Run) -> None:
    """Train every network with every seed, except for finished trainings."""
    path = run.directory.stage("retrain") / PLAN_FILE
    new = not path.exists()
    networks = plan(run) if new else read_plan(run)
    begin_tracking(run)
    for network in networks:
        track_network(run, network, again=new)
    if new:
        # After MLflow's runs have started, since a resumed stage expects them.
        run.directory.begin("retrain", run.fingerprint("retrain"))
        document = {"schema": SCHEMA, "networks": [network.to_dict() for network in networks]}
        write_json(path, document)
    reference = _evaluate_original(run) if run.config.has_original else None
    found, seeds = _train(run, networks), run.config.retrain.seeds
    results = []
    for network in networks:
        keys = [(network.architecture.id, seed) for seed in seeds]
        if all(key in found for key in keys):
            results.append(Retrained(network, tuple(found[key] for key in keys)))
            _track_result(run, results[-1])
        else:
            run.tracker.finish(tracking_key(network), failed=True)
    if stopped := len(networks) - len(results):
        left_out = plural(stopped, "network")
        run.progress.say(f"retrain: left out {left_out} of the front that ASHA stopped early")
    write_results(run, results, reference)
    tuned = run.config.begins_with("retrain")
    for result in (*([reference] if reference else ()), *results):
        std = result.std("val_top1")
        spread = "" if std is None else f" ± {100 * std:.1f}"
        name = network_name(result.network, called(run.config), tuned)
        run.progress.say(
            f"  {name}: {100 * result.mean('val_top1'):.1f}{spread} % top-1, "
            f"{result.network.cost.macs / 1e6:,.3f} M MACs"
        )


def read_plan(run: Run) -> list[Network]:
    """The networks of the stage."""
    path = run.directory.stage("retrain") / PLAN_FILE
    return read_json(path, list[Network], schema=SCHEMA, key="networks")


def original(run: Run) -> Original:
    """The network that the run begins with, its channels sorted."""
    return Original(run.space.vanilla, sorted_weights(run), _pruned_folder(run))


def _pruned_folder(run: Run) -> Path:
    return (run.directory.stage("retrain") / PRUNED_FOLDER).resolve()


def _as_it_came(run: Run) -> Training:
    """What is evaluated of the original; it is never trained."""
    return Training(
        run.space.vanilla,
        run.config.retrain.seeds[0],
        run.directory.stage("retrain") / ORIGINAL,
        validation_log=run.directory.path.resolve() / VALIDATION_LOG,
        original=original(run),
    )


def read_original(run: Run) -> Retrained | None:
    """The original with its result on val; None where there is none yet, or no original."""
    result = _as_it_came(run).result
    if result is None:
        return None
    network = Network(ORIGINAL, "", run.space.vanilla, run.space.cost(run.space.vanilla))
    return Retrained(network, (result,))


def _evaluate_original(run: Run) -> Retrained | None:
    """Evaluate the original on val, once, like all networks."""
    result = evaluate_original(_as_it_came(run), run.data, run.config.retrain, run.config.device)
    values = {f"{name}/{ORIGINAL}": result.metrics[name] for name in ("val_top1", "val_loss")}
    run.tracker.metrics(PARENT, values, 0)
    return read_original(run)


def _train(run: Run, networks: list[Network]) -> dict[tuple[str, int], SeedResult]:
    """Results by architecture and seed; an architecture in two roles is trained once."""
    settings, folder = run.config.retrain, run.directory.stage("retrain")
    log = run.directory.path.resolve() / VALIDATION_LOG
    by_id: dict[str, list[Network]] = {}
    for network in networks:
        by_id.setdefault(network.architecture.id, []).append(network)
    begins_with = original(run) if run.config.begins_with("retrain") else None
    supernet = trained_supernet(run) if settings.weights == "supernet" else None
    trainings = [
        Training(
            same[0].architecture,
            seed,
            training_folder(folder, identity, seed),
            validation_log=log,
            original=begins_with,
            supernet=supernet,
        )
        for seed in settings.seeds
        for identity, same in by_id.items()
    ]

    def on_epoch(training: Training, row: Mapping[str, float]) -> None:
        values = {f"seed_{training.seed}/{name}": row[name] for name in ("train_loss", "lr")}
        for network in by_id[training.architecture.id]:
            run.tracker.metrics(tracking_key(network), values, int(row["epoch"]))

    train_several(
        run,
        _not_stopped(trainings),
        settings,
        section="retrain",
        title="retrain",
        on_epoch=on_epoch,
        may_stop={one.architecture.id for one in networks if one.role == FRONT},
    )
    return {(one.architecture.id, one.seed): finished(one) for one in _not_stopped(trainings)}


def _not_stopped(trainings: Sequence[Training]) -> list[Training]:
    return [one for one in trainings if not (one.folder / STOPPED_FILE).exists()]


def train_several(
    run: Run,
    trainings: Sequence[Training],
    settings: RetrainSettings,
    *,
    section: str,
    title: str,
    on_epoch: OnEpoch | None = None,
    may_stop: Set[str] = frozenset(),
) -> None:
    """Run unfinished trainings, with a progress bar that counts epochs.

    Args:
        run: with the data and the device.
        trainings: what to train.
        settings: recipe, processes and executor.
        section: of the experiment file that they come from.
        title: of the bar.
        on_epoch: called after every epoch of any training.
        may_stop: ids of the architectures whose trainings halving may stop early.

    Raises:
        ConfigError: timm does not know something in the recipe, or it does not fit the data.
    """
    images = open_images(run.data, run.space.input_size)
    check_classes(run, len(images.classes))
    with run.settings_of(section, "recipe"):
        check_recipe(settings.recipe, images.count("train"))
    with run.settings_of():
        choose_device(run.config.device)
    with run.progress.bar(title, len(trainings) * settings.recipe.epochs) as bar:

        def advance(training: Training, row: Mapping[str, float]) -> None:
            bar.advance(note=f"{training.architecture.id}, loss {row['train_loss']:.3f}")
            if on_epoch is not None:
                on_epoch(training, row)

        todo = unfinished(trainings)
        bar.advance(settings.recipe.epochs * (len(trainings) - len(todo)))
        if todo and settings.executor == "ray":
            _with_tune(run, todo, settings, advance, may_stop)
        else:
            deque(train_all(todo, run.data, settings, run.config.device, advance), maxlen=0)


def finished(training: Training) -> SeedResult:
    """The result of a training; a RunDirectoryError if it is missing."""
    if (result := training.result) is None:
        raise RunDirectoryError(
            f"{training.folder}: this training is missing; redo its stage with --fresh in the run "
            "directory that it belongs to"
        )
    return result


def _with_tune(
    run: Run,
    todo: Sequence[Training],
    settings: RetrainSettings,
    on_epoch: OnEpoch,
    may_stop: Set[str],
) -> None:
    """Run trainings as trials of Ray Tune."""
    from octnas.cluster.signals import forwarding_signals
    from octnas.cluster.start import ray_cluster
    from octnas.cluster.tune_trainings import Halving, train_with_tune

    halving: Halving[Training] | None = None
    if settings.halving is not None:
        ids = {one.architecture.id: one.architecture for one in todo}
        macs = {identity: cost(one).cost.macs for identity, one in ids.items()}
        halving = Halving(
            metric="search_val_top1",
            cost=lambda training: macs[training.architecture.id],
            may_stop=lambda training: training.architecture.id in may_stop,
            epochs=settings.recipe.epochs,
            grace=settings.halving.grace_epochs,
            reduction=settings.halving.reduction,
        )
    data, device, watch = run.data, run.config.device, "search_val" if halving else ""

    def train(training: Training, report: Log) -> None:
        train_one(training, data, settings, device, report, watch)

    processes, gpus = settings.processes, run.config.ray.gpus
    with (
        ray_cluster(settings.workers * processes, run.config.ray),
        forwarding_signals(run.directory.path) as stops,
    ):
        stopped = train_with_tune(
            stops.reach(train),
            todo,
            on_epoch,
            workers=settings.workers,
            # Within the folder of the stage, which may be that of another run.
            directory=(todo[0].folder.parents[1] / "ray").resolve(),
            cpus=processes,
            gpus=processes * gpus,
            halving=halving,
        )
    for training in stopped:
        write_json(training.folder / STOPPED_FILE, {"schema": SCHEMA, "seed": training.seed})
        training.checkpoints().remove()


def track_network(run: Run, network: Network, *, again: bool) -> None:
    """Start the network's MLflow run, or resume it; ``again`` starts it in any case."""
    params = flatten(run.config.retrain, "retrain") | {
        "architecture": network.architecture.id,
        "macs": network.cost.macs,
        "params": network.cost.params,
        "activation_bytes": network.cost.activation_bytes,
        "alphas": dict(network.architecture.alphas),
    }
    tags = {"octnas.role": network.role, "octnas.budget": network.budget}
    run.tracker.start(
        tracking_key(network), network.name, params=params, tags=tags, parent=PARENT, again=again
    )


def _track_result(run: Run, result: Retrained) -> None:
    """Log the final metrics of every seed, and their mean and spread."""
    key = tracking_key(result.network)
    epochs = run.config.retrain.recipe.epochs
    values: dict[str, float] = {}
    for seed_result in result.runs:
        values |= {
            f"seed_{seed_result.seed}/{name}": value for name, value in seed_result.metrics.items()
        }
    for metric in ("val_top1", "val_loss"):
        values[metric] = result.mean(metric)
        if (std := result.std(metric)) is not None:
            values[f"{metric}_std"] = std
    run.tracker.metrics(key, values, epochs)
    run.tracker.finish(key)
    if result.network.role == SEARCHED:
        mean = result.mean("val_top1")
        run.tracker.metrics(PARENT, {f"val_top1/{result.network.slug}": mean}, 0)
