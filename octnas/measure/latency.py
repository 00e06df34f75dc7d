"""Latency of a search space's layers and networks on this machine, measured."""

import platform
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from octnas.device import cpu_threads
from octnas.errors import LatencyError
from octnas.latency import LatencyTable, geometry_of
from octnas.latency_records import MeasuredNetwork
from octnas.measure.backends import Step, as_step, check_device, inference
from octnas.measure.latency_fit import as_networks, draw_networks, fit_table
from octnas.measure.layers import LayerPlan, materialise, plan_layers
from octnas.measure.settings import LatencySettings
from octnas.measure.standalone import Kept, MeasureFileError, time_all
from octnas.nn.deploy import deploy
from octnas.nn.supernet import build
from octnas.space import SearchSpace

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
