"""Latency of a search space's layers and networks on this machine, measured.

Whole networks for a latency table: to fit it to, and to hold it against.

The latency of whole networks on this machine, with the slow rounds.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from octnas.device import cpu_threads
from octnas.errors import LatencyError, MeasureError
from octnas.measure.backends import Step, as_step, check_device, inference
from octnas.measure.deployed_layers import LayerPlan, materialise, plan_layers
from octnas.measure.settings import LatencySettings
from octnas.measure.standalone import Kept, MeasureFileError, time_all
from octnas.measure.timing import interleave
from octnas.nn.deploy import deploy
from octnas.nn.supernet import build
from octnas.results.ranking import kendall, spearman
from octnas.space.architecture import Architecture
from octnas.space.cost_table import AdditiveCost, CostLevels
from octnas.space.latency import LatencyTable, MeasuredNetwork, Quality, geometry_of
from octnas.space.search_space import SearchSpace

FIT, CHECK, NARROW = "fit", "check", "narrow"
# Draws for each network that is wanted, until it is given up in a space that holds few.
_DRAWS = 20
# Networks from which on single sites can be told apart; and how much is held against a site's time,
# for each network.
_FEWEST, _PENALTIES = 10, np.geomspace(0.01, 100, 9)


def draw_networks(
    cost: AdditiveCost, settings: LatencySettings, seed: int = 0
) -> list[tuple[str, dict[str, float]]]:
    """Networks with what they are for; none is drawn twice.

    Args:
        cost: over whose range they are spread.
        settings: how many for ``fit`` and ``check``, over the whole range, and ``narrow``, in its
            middle; fewer where the space holds no others.
        seed: of the draws.
    """
    counts = {NARROW: settings.narrow, FIT: settings.fit, CHECK: settings.networks}
    width = settings.width
    levels, rng = CostLevels(cost.space, cost=cost), np.random.default_rng(seed)
    middle = (levels.smallest + levels.largest) / 2
    ends = {
        NARROW: (int(middle * (1 - width / 2)), int(middle * (1 + width / 2))),
        FIT: (levels.smallest, levels.largest),
        CHECK: (levels.smallest, levels.largest),
    }
    found: dict[tuple[float, ...], tuple[str, dict[str, float]]] = {}
    for use, (low, high) in ends.items():
        if levels.count(low, high) == 0:
            continue
        edges = np.linspace(low, high, counts[use] + 1)
        for start, end in pairwise(edges):
            inside = (int(np.ceil(start)), int(end))
            if use == NARROW or levels.count(*inside) == 0:
                inside = (low, high)
            for _ in range(_DRAWS):
                alphas = levels.sample(rng, *inside)
                if tuple(alphas.values()) not in found:
                    found[tuple(alphas.values())] = (use, alphas)
                    break
    return list(found.values())


def as_networks(
    drawn: Sequence[tuple[str, Mapping[str, float]]],
    keys: Sequence[str],
    seconds: Callable[[str], Mapping[str, float]],
) -> list[MeasuredNetwork]:
    """Networks with their times.

    Args:
        drawn: what they are for, and α by site.
        keys: of each.
        seconds: by key, for ``"ratio"`` (all rounds), ``"even"`` and ``"odd"``.
    """
    both, even, odd = (seconds(which) for which in ("ratio", "even", "odd"))
    return [
        MeasuredNetwork(use, dict(alphas), both[key], even[key], odd[key])
        for (use, alphas), key in zip(drawn, keys, strict=True)
    ]


def fit_table(
    table: LatencyTable, space: SearchSpace, networks: Sequence[MeasuredNetwork]
) -> LatencyTable:
    """The table fitted to some networks, and its quality on the others.

    Args:
        table: of layers by themselves, with constant 0 and factor 1.
        space: of the networks.
        networks: measured as a whole; those for ``fit`` are not among those of the quality.

    Raises:
        MeasureError: fewer than two networks to fit to, or networks that take no longer the longer
            their layers do.
    """
    fitting = [one for one in networks if one.use == FIT]
    if len(fitting) < 2:
        raise MeasureError(f"found {len(fitting)} networks to fit a latency table to, allowed: 2")
    cost = table.cost(space)
    sums = np.array([cost.of(one.alphas) * 1e-9 for one in fitting])
    seconds = np.array([one.seconds for one in fitting])
    rows = np.stack([np.ones(len(fitting)), sums], axis=1)
    # Relative errors count, in a small network as in a large one.
    constant, factor = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(fitting)))[0]
    if not factor > 0:
        raise MeasureError(
            f"networks take no longer the longer their layers do (factor {factor:.3g}): the "
            "machine is too noisy; raise --repeats, or measure when nothing else runs"
        )
    left = seconds - rows @ [constant, factor]
    fitted = replace(
        table,
        constant=float(constant),
        factor=float(factor),
        sites=_sites(space, fitting, seconds, left),
    )
    return replace(fitted, quality=qualities(fitted, space, networks), networks=tuple(networks))


def _sites(
    space: SearchSpace, networks: Sequence[MeasuredNetwork], seconds: np.ndarray, left: np.ndarray
) -> dict[str, dict[float, float]]:
    """Times by site and α that explain what the layers leave, as far as it comes again.

    A ridge regression on relative errors, its penalty chosen by leaving out one network at a time;
    with the strongest one nearly nothing is explained.

    Args:
        space: of the networks.
        networks: that were measured.
        seconds: of each.
        left: of them, what the layers do not explain.
    """
    from sklearn.linear_model import RidgeCV

    if len(networks) < _FEWEST:
        return {}
    places = [(site.name, alpha) for site in space.searchable for alpha in site.choices]
    there = np.array([[one.alphas[name] == alpha for name, alpha in places] for one in networks])
    scale = float(seconds.mean())
    model = RidgeCV(alphas=_PENALTIES * len(networks), fit_intercept=False)
    model.fit(there * (scale / seconds)[:, None], left / seconds)
    found: dict[str, dict[float, float]] = {}
    for (name, alpha), value in zip(places, model.coef_, strict=True):
        found.setdefault(name, {})[alpha] = float(value) * scale
    return found


def qualities(
    table: LatencyTable, space: SearchSpace, networks: Sequence[MeasuredNetwork]
) -> dict[str, Quality]:
    """How well a table predicts networks that it was not fitted to.

    All of them; those that are spread over the range alone; and those of the narrow slice.
    """
    cost = table.cost(space)
    others = [one for one in networks if one.use != FIT]
    groups = {"all": others}
    groups["spread"] = [one for one in others if one.use == CHECK]
    groups[NARROW] = [one for one in others if one.use == NARROW]
    return {name: _quality(cost, group) for name, group in groups.items() if group}


def _quality(cost: AdditiveCost, networks: Sequence[MeasuredNetwork]) -> Quality:
    predicted = np.array([cost.of(one.alphas) * 1e-9 for one in networks])
    seconds, even, odd = (
        np.array([getattr(one, key) for one in networks]) for key in ("seconds", "even", "odd")
    )
    errors = np.abs(predicted / seconds - 1)
    return Quality(
        networks=len(networks),
        error=float(np.median(errors)),
        worst=float(errors.max()),
        tau=_defined(kendall(predicted, seconds)),
        rho=_defined(spearman(predicted, seconds)),
        ceiling=_defined(kendall(even, odd)),
        width=float(predicted.max() / predicted.min() - 1),
    )


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


Log = Callable[[str], None]
Make = Callable[[], tuple[nn.Module, Sequence[Tensor]]]
"""A module that is deployed, and its inputs."""

_CONDITIONS = ("backend", "precision", "batch", "threads", "repeats")


def machine_name(device: str) -> str:
    """A name for what computes: the machine's, and the GPU's where it is one.

    Raises:
        SettingError: a device that is not there.
    """
    check_device(device)
    name = platform.node() or platform.machine()
    on_gpu = device.startswith("cuda")
    return f"{name} {torch.cuda.get_device_name(device)}" if on_gpu else name


def measure_table(
    space: SearchSpace, settings: LatencySettings, kept_file: Path, log: Log = lambda _: None
) -> LatencyTable:
    """Measure a search space's layers, then whole networks, and fit the one to the other.

    Args:
        space: the search space.
        settings: with what.
        kept_file: where times are kept at once, so that what was broken off is gone on with.
        log: told how far it has come.

    Raises:
        SettingError: a backend or device that is not there.
        LatencyError: the file holds times of other settings.
        MeasureError: the machine is too noisy for a fit.
    """
    check_device(settings.device)
    with cpu_threads(settings.threads):
        clock = _Clock(space, settings, kept_file, log)
        plan = plan_layers(space, settings.batch)
        clock.time("layers", {key: layer(plan, key) for key in plan.modules})
        table = bare_table(space, settings, plan, clock.kept.seconds(plan.modules))
        drawn = draw_networks(table.cost(space), settings)
        measured = clock.networks(drawn)
    return fit_table(table, space, measured)


def measure_networks(
    space: SearchSpace, alphas: Sequence[Mapping[str, float]], settings: LatencySettings, kept: Path
) -> list[float]:
    """Seconds that whole architectures take for a batch, in turns; see `measure_table`."""
    check_device(settings.device)
    with cpu_threads(settings.threads):
        clock = _Clock(space, settings, kept, lambda _: None)
        return [one.seconds for one in clock.networks([("", one) for one in alphas])]


def bare_table(
    space: SearchSpace, settings: LatencySettings, plan: LayerPlan, seconds: Mapping[str, float]
) -> LatencyTable:
    """A table before it is fitted to whole networks."""
    return LatencyTable(
        device=settings.name or machine_name(settings.device),
        backend=settings.backend,
        precision=settings.precision,
        batch=settings.batch,
        threads=settings.threads,
        geometry=geometry_of(space),
        layers=tuple(layer.times(seconds) for layer in plan.layers),
    )


def network_key(space: SearchSpace, alphas: Mapping[str, float], batch: int) -> str:
    """The same for the same architecture at the same batch size; no layer's."""
    text = f"network {space.architecture(alphas).id} {batch}"
    return sha256(text.encode()).hexdigest()[:16]


def layer(plan: LayerPlan, key: str) -> Make:
    """A layer of random weights, and its inputs."""
    return lambda: materialise(plan.modules[key])


def network(space: SearchSpace, alphas: Mapping[str, float], batch: int) -> Make:
    """A whole network of random weights, and images."""

    def make() -> tuple[nn.Module, Sequence[Tensor]]:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand((batch, *space.input_size), generator=generator)
        return deploy(build(space.architecture(alphas), seed=0)), [images]

    return make


class _Clock:
    """Times functions in turns with the vanilla network, and keeps what it has timed.

    Raises:
        LatencyError: the file holds times of other settings.
    """

    def __init__(self, space: SearchSpace, settings: LatencySettings, path: Path, log: Log) -> None:
        self._space, self._settings, self._log = space, settings, log
        self._reference: Step | None = None
        conditions = {
            "name": settings.name or machine_name(settings.device),
            "device": settings.device,
            "geometry": geometry_of(space),
            **{key: getattr(settings, key) for key in _CONDITIONS},
        }
        try:
            self.kept = Kept(path, conditions)
        except MeasureFileError as error:
            raise LatencyError(str(error)) from None

    def time(self, what: str, work: Mapping[str, Make]) -> None:
        """Time what is not kept yet."""
        if all(key in self.kept.entries for key in work):
            return
        if self._reference is None:
            vanilla = dict.fromkeys(self._space.site, 0.0)
            self._reference = self._step(network(self._space, vanilla, self._settings.batch))
        time_all(
            list(work),
            lambda key: self._step(work[key]),
            self._reference,
            self.kept,
            self._settings.repeats,
            lambda done, total: self._log(f"{what}: {done} of {total}"),
        )

    def networks(self, drawn: Sequence[tuple[str, Mapping[str, float]]]) -> list[MeasuredNetwork]:
        """Whole networks, by what they are for, with their times."""
        batch = self._settings.batch
        keys = [network_key(self._space, alphas, batch) for _, alphas in drawn]
        work = {
            key: network(self._space, alphas, batch)
            for key, (_, alphas) in zip(keys, drawn, strict=True)
        }
        self.time("networks", work)
        # In terms of their own reference: which networks are drawn goes by the layers' times, and
        # may not change with what has been timed since.
        return as_networks(drawn, keys, lambda which: self.kept.seconds(work, which))

    def _step(self, make: Make) -> Step:
        engine, (module, inputs) = self._settings.engine, make()
        return as_step(inference(engine, module, inputs), engine)


SLOW = 0.95


@dataclass(frozen=True)
class WholeTime:
    """Seconds that a network takes for a batch.

    Attributes:
        median: over all rounds.
        p95: that 95 % of the rounds stay below.
    """

    median: float
    p95: float


def time_networks(
    architectures: Sequence[Architecture], settings: LatencySettings
) -> dict[str, WholeTime]:
    """Time whole networks of random weights, deployed, in turns.

    Args:
        architectures: octave or plain.
        settings: backend, device, precision, batch size, threads and rounds.

    Returns:
        By architecture id.

    Raises:
        SettingError: a backend or device that is not there.
    """
    check_device(settings.device)
    with cpu_threads(settings.threads):
        steps = {one.id: _step(one, settings) for one in architectures}
        seconds = interleave(steps, settings.repeats)
    return {
        name: WholeTime(float(np.median(times)), float(np.quantile(times, SLOW)))
        for name, times in seconds.items()
    }


def _step(architecture: Architecture, settings: LatencySettings) -> Step:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((settings.batch, *architecture.input_size), generator=generator)
    model = deploy(build(architecture, seed=0).eval())
    return as_step(inference(settings.engine, model, [images]), settings.engine)
