"""Stage 5: the chosen networks and the baselines, trained from scratch.

What is retrained: the searched networks, and the controls that they are held against.

All of it is fixed before any of it is trained, so that nothing is chosen by what val shows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import islice

import numpy as np

from octnas.data.images import Data
from octnas.io.files import write_json
from octnas.nn.cost import cost
from octnas.nn.plain import plain_network
from octnas.pipeline.records import (
    PARENT,
    begin_tracking,
    read_candidates,
    read_chosen,
    write_results,
)
from octnas.pipeline.run import Run
from octnas.pipeline.search import chosen_by
from octnas.pipeline.trainings import finished, train_several
from octnas.results.front import Candidate, Front
from octnas.results.networks import (
    FRONT,
    PLAIN,
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
from octnas.results.validation_log import LOOKS_FILE
from octnas.runtime.directory import read_document, reading
from octnas.search.surrogate import Features, fit, scores_of
from octnas.settings import flatten
from octnas.space.architecture import Architecture
from octnas.space.cost_table import AdditiveCost, CostLevels
from octnas.space.costs import Budget
from octnas.space.optimum import best_within
from octnas.training.settings import RetrainSettings
from octnas.training.standalone import OnEpoch, Settings, Training, train_one, training_folder

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
    while len(drawn) < settings.randoms and upper < 2 * levels.largest:
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


SCHEMA = 1
PLAN_FILE = "plan.json"
STOPPED_FILE = "stopped.json"


def tracking_key(network: Network) -> str:
    """The key of a retrained network's MLflow run."""
    return f"retrain/{network.slug}"


def retrain(run: Run) -> None:
    """Train every network with every seed; what is on disk already is not trained again."""
    path = run.directory.stage("retrain") / PLAN_FILE
    anew = not path.exists()
    networks = plan(run) if anew else read_plan(run)
    begin_tracking(run)
    for network in networks:
        track_network(run, network, anew=anew)
    if anew:
        # After MLflow's runs: a stage that goes on goes on with those that it finds.
        run.directory.begin("retrain", run.fingerprint("retrain"))
        document = {"schema": SCHEMA, "networks": [network.to_dict() for network in networks]}
        write_json(path, document)
    found = _train(run, networks)
    results = []
    for network in _whole(run, networks, found):
        runs = tuple(found[network.architecture.id, seed] for seed in run.config.retrain.seeds)
        results.append(Retrained(network, runs))
        _track_result(run, results[-1])
    write_results(run, results)
    for result in results:
        std = result.std("val_top1")
        spread = "" if std is None else f" ± {100 * std:.1f}"
        run.progress.say(
            f"  {result.network.name}: {100 * result.mean('val_top1'):.1f}{spread} % top-1, "
            f"{result.network.cost.macs / 1e6:,.3f} M MACs"
        )


def read_plan(run: Run) -> list[Network]:
    """The networks that are retrained."""
    path = run.directory.stage("retrain") / PLAN_FILE
    with reading(path):
        planned = read_document(path, SCHEMA, "networks")["networks"]
        return [Network.from_dict(entry) for entry in planned]


def _train(run: Run, networks: list[Network]) -> dict[tuple[str, int], SeedResult]:
    """Results by architecture and seed; an architecture in two roles is trained once."""
    settings, folder = run.config.retrain, run.directory.stage("retrain")
    architectures = {network.architecture.id: network.architecture for network in networks}
    looks = run.directory.path.resolve() / LOOKS_FILE
    trainings = [
        Training(architecture, seed, training_folder(folder, identity, seed), looks=looks)
        for seed in settings.seeds
        for identity, architecture in architectures.items()
    ]
    by_id: dict[str, list[Network]] = {}
    for network in networks:
        by_id.setdefault(network.architecture.id, []).append(network)

    def on_epoch(training: Training, row: Mapping[str, float]) -> None:
        values = {f"seed_{training.seed}/{name}": row[name] for name in ("train_loss", "lr")}
        for network in by_id[training.architecture.id]:
            run.tracker.metrics_once(tracking_key(network), values, int(row["epoch"]))

    train = None
    if settings.executor == "ray":
        front = {one.architecture.id for one in networks if one.role == FRONT}
        macs = {one.architecture.id: one.cost.macs for one in networks}
        train = partial(_with_tune, front=front, macs=macs)
    train_several(run, trainings, settings, "retrain", "retrain", on_epoch, train)
    kept = [one for one in trainings if not (one.folder / STOPPED_FILE).exists()]
    return {(one.architecture.id, one.seed): finished(one) for one in kept}


def _whole(
    run: Run, networks: list[Network], found: Mapping[tuple[str, int], SeedResult]
) -> list[Network]:
    """The networks of which no training was stopped early."""
    seeds = run.config.retrain.seeds
    whole = [
        network
        for network in networks
        if all((network.architecture.id, seed) in found for seed in seeds)
    ]
    if gone := len(networks) - len(whole):
        run.progress.say(f"retrain: {gone} of the front were stopped early, and are left out")
    for network in networks:
        if network not in whole:
            run.tracker.finish(tracking_key(network), failed=True)
    return whole


def _with_tune(
    run: Run,
    todo: Sequence[Training],
    settings: Settings,
    on_epoch: OnEpoch,
    *,
    front: Set[str],
    macs: Mapping[str, int],
) -> Iterable[object]:
    """Trials of Ray Tune; networks of the front that others dominate may be stopped."""
    from octnas.cluster.start import ray_cluster
    from octnas.cluster.stops import telling_stops
    from octnas.cluster.tune_trainings import Halving, train_with_tune

    assert isinstance(settings, RetrainSettings)
    todo = [one for one in todo if not (one.folder / STOPPED_FILE).exists()]
    halving: Halving[Training] | None = None
    if settings.halving is not None:
        halving = Halving(
            metric="search_val_top1",
            cost=lambda training: macs[training.architecture.id],
            may_stop=lambda training: training.architecture.id in front,
            epochs=settings.recipe.epochs,
            grace=settings.halving.grace_epochs,
            reduction=settings.halving.reduction,
        )
    train = partial(
        _report_epochs,
        data=run.data,
        settings=settings,
        device=run.config.device,
        watch="" if halving is None else "search_val",
    )
    with (
        ray_cluster(settings.workers * settings.processes, run.config.ray),
        telling_stops(run.directory.path) as stops,
    ):
        stopped = train_with_tune(
            stops.reach(train),
            todo,
            on_epoch,
            workers=settings.workers,
            directory=(run.directory.stage("retrain") / "ray").resolve(),
            cpus=settings.processes,
            gpus=settings.processes * run.config.ray.gpus,
            halving=halving,
        )
    for training in stopped:
        write_json(training.folder / STOPPED_FILE, {"schema": SCHEMA, "seed": training.seed})
        training.checkpoints().remove()
    return ()


def _report_epochs(
    training: Training,
    report: Callable[[Mapping[str, float]], None],
    *,
    data: Data,
    settings: RetrainSettings,
    device: str,
    watch: str,
) -> None:
    """Train in a trial of Tune."""
    train_one(training, data, settings, device, lambda _, row: report(row), watch)


def track_network(run: Run, network: Network, *, anew: bool) -> None:
    """Start the network's MLflow run, or go on with it."""
    params = flatten(run.config.retrain, "retrain") | {
        "architecture": network.architecture.id,
        "macs": network.cost.macs,
        "params": network.cost.params,
        "activation_bytes": network.cost.activation_bytes,
        "alphas": dict(network.architecture.alphas),
    }
    tags = {"octnas.role": network.role, "octnas.budget": network.budget}
    run.tracker.start(
        tracking_key(network), network.name, params=params, tags=tags, parent=PARENT, again=anew
    )


def _track_result(run: Run, result: Retrained) -> None:
    """Final metrics by seed, their mean and spread, and the architecture."""
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
    run.tracker.metrics_once(key, values, epochs)
    run.tracker.finish(key)
    if result.network.role == SEARCHED:
        mean = result.mean("val_top1")
        run.tracker.metrics_once(PARENT, {f"val_top1/{result.network.slug}": mean}, 0)
