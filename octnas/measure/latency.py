"""Latency measured on this machine: of layers and whole networks, and the table fitted to them."""

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
_DRAWS = 20  # per network, before giving up in a small space
_FEWEST = 10  # networks to fit times of sites to
_PENALTIES = np.geomspace(0.01, 100, 9)  # of those times, per network

Log = Callable[[str], None]
Make = Callable[[], tuple[nn.Module, Sequence[Tensor]]]
"""Makes a deployed module and its inputs."""

_CONDITIONS = ("backend", "precision", "batch", "threads", "repeats")


def draw_networks(
    cost: AdditiveCost, settings: LatencySettings, seed: int = 0
) -> list[tuple[str, dict[str, float]]]:
    """Distinct networks and their uses; fewer than requested in a small space.

    Those to ``"fit"`` to and to ``"check"`` cover the range of the cost, the ``"narrow"`` ones its
    middle.
    """
    width = settings.width
    levels, rng = CostLevels(cost.space, cost=cost), np.random.default_rng(seed)
    middle, whole = (levels.smallest + levels.largest) / 2, (levels.smallest, levels.largest)
    narrow = (int(middle * (1 - width / 2)), int(middle * (1 + width / 2)))
    wanted = (
        (NARROW, settings.narrow, narrow),
        (FIT, settings.fit, whole),
        (CHECK, settings.networks, whole),
    )
    found: dict[tuple[float, ...], tuple[str, dict[str, float]]] = {}
    for use, count, (low, high) in wanted:
        if levels.count(low, high) == 0:
            continue
        edges = np.linspace(low, high, count + 1)
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
    """Networks, from their uses and α by site, their keys, and their times.

    ``seconds`` gives times by key, for ``"ratio"`` (all rounds), ``"even"`` and ``"odd"``.
    """
    both, even, odd = (seconds(which) for which in ("ratio", "even", "odd"))
    return [
        MeasuredNetwork(use, dict(alphas), both[key], even[key], odd[key])
        for (use, alphas), key in zip(drawn, keys, strict=True)
    ]


def fit_table(
    table: LatencyTable, space: SearchSpace, networks: Sequence[MeasuredNetwork]
) -> LatencyTable:
    """A table of single layers fitted to some whole networks, with its quality on the others.

    Raises:
        MeasureError: fewer than two networks to fit to, or times that do not grow with the layers'.
    """
    fitting = [one for one in networks if one.use == FIT]
    if len(fitting) < 2:
        raise MeasureError(
            f"found {len(fitting)} networks to fit a latency table to, allowed: 2 or more"
        )
    cost = table.cost(space)
    sums = np.array([cost.of(one.alphas) * 1e-9 for one in fitting])
    seconds = np.array([one.seconds for one in fitting])
    rows = np.stack([np.ones(len(fitting)), sums], axis=1)
    # Least squares of relative errors, so that small networks count as much as large ones.
    constant, factor = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(fitting)))[0]
    if not factor > 0:
        raise MeasureError(
            f"the networks' times do not grow with those of their layers (factor {factor:.3g}): "
            "the machine is too noisy; raise --repeats, or measure while nothing else runs"
        )
    residuals = seconds - rows @ [constant, factor]
    fitted = replace(
        table,
        constant=float(constant),
        factor=float(factor),
        sites=_site_times(space, fitting, seconds, residuals),
    )
    return replace(fitted, quality=qualities(fitted, space, networks), networks=tuple(networks))


def _site_times(
    space: SearchSpace,
    networks: Sequence[MeasuredNetwork],
    seconds: np.ndarray,
    residuals: np.ndarray,
) -> dict[str, dict[float, float]]:
    """Times by site and α that explain part of the residuals of the layers' fit.

    A ridge regression on relative errors, with its penalty chosen by leave-one-out validation; with
    the strongest penalty it explains almost nothing.
    """
    from sklearn.linear_model import RidgeCV

    if len(networks) < _FEWEST:
        return {}
    places = [(site.name, alpha) for site in space.searchable for alpha in site.choices]
    there = np.array([[one.alphas[name] == alpha for name, alpha in places] for one in networks])
    scale = float(seconds.mean())
    model = RidgeCV(alphas=_PENALTIES * len(networks), fit_intercept=False)
    model.fit(there * (scale / seconds)[:, None], residuals / seconds)
    found: dict[str, dict[float, float]] = {}
    for (name, alpha), value in zip(places, model.coef_, strict=True):
        found.setdefault(name, {})[alpha] = float(value) * scale
    return found


def qualities(
    table: LatencyTable, space: SearchSpace, networks: Sequence[MeasuredNetwork]
) -> dict[str, Quality]:
    """The quality of a table on the networks it was not fitted to, see `LatencyTable.quality`."""
    cost = table.cost(space)
    groups = {"all": (CHECK, NARROW), "spread": (CHECK,), NARROW: (NARROW,)}
    found = {name: [n for n in networks if n.use in uses] for name, uses in groups.items()}
    return {name: _quality(cost, group) for name, group in found.items() if group}


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


def machine_name(device: str) -> str:
    """The machine's name, followed by the GPU's if the device is one.

    Raises:
        SettingError: the device does not exist.
    """
    check_device(device)
    name = platform.node() or platform.machine()
    on_gpu = device.startswith("cuda")
    return f"{name} {torch.cuda.get_device_name(device)}" if on_gpu else name


def measure_table(
    space: SearchSpace, settings: LatencySettings, kept_file: Path, log: Log = lambda _: None
) -> LatencyTable:
    """Measure a search space's layers, then whole networks, and fit the former to the latter.

    Times are stored in ``kept_file`` at once, so that an interrupted measurement resumes.

    Raises:
        SettingError: a missing backend or device.
        LatencyError: the file has times measured with other settings.
        MeasureError: the machine is too noisy for a fit.
    """
    check_device(settings.device)
    with cpu_threads(settings.threads):
        clock = _Clock(space, settings, kept_file, log)
        plan = plan_layers(space, settings.batch)
        clock.time("layers", {key: layer(plan, key) for key in plan.modules})
        seconds = clock.kept.seconds(plan.modules)
        table = LatencyTable(
            device=clock.name,
            backend=settings.backend,
            precision=settings.precision,
            batch=settings.batch,
            threads=settings.threads,
            geometry=geometry_of(space),
            layers=tuple(layer.times(seconds) for layer in plan.layers),
        )
        drawn = draw_networks(table.cost(space), settings)
        measured = clock.networks(drawn)
    return fit_table(table, space, measured)


def measure_networks(
    space: SearchSpace, alphas: Sequence[Mapping[str, float]], settings: LatencySettings, kept: Path
) -> list[float]:
    """Seconds of whole architectures for a batch, interleaved; see `measure_table`."""
    check_device(settings.device)
    with cpu_threads(settings.threads):
        clock = _Clock(space, settings, kept, lambda _: None)
        return [one.seconds for one in clock.networks([("", one) for one in alphas])]


def network_key(space: SearchSpace, alphas: Mapping[str, float], batch: int) -> str:
    """Identifies an architecture at a batch size; differs from the keys of layers."""
    text = f"network {space.architecture(alphas).id} {batch}"
    return sha256(text.encode()).hexdigest()[:16]


def layer(plan: LayerPlan, key: str) -> Make:
    """A layer of random weights and its inputs."""
    return lambda: materialise(plan.modules[key])


def network(architecture: Architecture, batch: int) -> Make:
    """A whole network of random weights and its images."""

    def make() -> tuple[nn.Module, Sequence[Tensor]]:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand((batch, *architecture.input_size), generator=generator)
        return deploy(build(architecture, seed=0)), [images]

    return make


def _step(make: Make, settings: LatencySettings) -> Step:
    module, inputs = make()
    return as_step(inference(settings.engine, module, inputs), settings.engine)


class _Clock:
    """Times functions interleaved with the vanilla network, and stores the times in a file."""

    def __init__(self, space: SearchSpace, settings: LatencySettings, path: Path, log: Log) -> None:
        self._space, self._settings, self._log = space, settings, log
        self.name = settings.name or machine_name(settings.device)
        self._reference: Step | None = None
        conditions = {
            "name": self.name,
            "device": settings.device,
            "geometry": geometry_of(space),
            **{key: getattr(settings, key) for key in _CONDITIONS},
        }
        try:
            self.kept = Kept(path, conditions)
        except MeasureFileError as error:
            raise LatencyError(str(error)) from None

    def time(self, what: str, work: Mapping[str, Make]) -> None:
        """Time the functions that have no stored times."""
        if all(key in self.kept.entries for key in work):
            return
        if self._reference is None:
            vanilla = network(self._space.vanilla, self._settings.batch)
            self._reference = _step(vanilla, self._settings)
        time_all(
            list(work),
            lambda key: _step(work[key], self._settings),
            self._reference,
            self.kept,
            self._settings.repeats,
            lambda done, total: self._log(f"{what}: {done} of {total}"),
        )

    def networks(self, drawn: Sequence[tuple[str, Mapping[str, float]]]) -> list[MeasuredNetwork]:
        """Time whole networks, given by their uses and α by site."""
        batch = self._settings.batch
        keys = [network_key(self._space, alphas, batch) for _, alphas in drawn]
        work = {
            key: network(self._space.architecture(alphas), batch)
            for key, (_, alphas) in zip(keys, drawn, strict=True)
        }
        self.time("networks", work)
        # With a reference of their own: the layers' times, by which networks are drawn, must not
        # change with times measured later.
        return as_networks(drawn, keys, lambda which: self.kept.seconds(work, which))


@dataclass(frozen=True)
class WholeTime:
    """Seconds of a network for a batch: median and 95th percentile over all rounds."""

    median: float
    p95: float


def time_networks(
    architectures: Sequence[Architecture], settings: LatencySettings
) -> dict[str, WholeTime]:
    """Time whole networks of random weights, deployed and interleaved; by architecture id.

    Raises:
        SettingError: a missing backend or device.
    """
    check_device(settings.device)
    with cpu_threads(settings.threads):
        steps = {one.id: _step(network(one, settings.batch), settings) for one in architectures}
        seconds = interleave(steps, settings.repeats)
    return {
        name: WholeTime(float(np.median(times)), float(np.quantile(times, 0.95)))
        for name, times in seconds.items()
    }
