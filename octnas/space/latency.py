"""Latency on a named device, predicted from a table of layer times.

A table has one time for each layer and pair (α of its input, α of its output). A layer does not
take the same time alone as within a network, so a constant, a factor and a time for each site's α,
fitted to whole networks, relate the sum of the entries to the prediction.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from math import ceil
from typing import Any

import numpy as np

from octnas.errors import LatencyError
from octnas.io.files import read_as
from octnas.settings import HOW
from octnas.space.cost_table import AdditiveCost, integers, sum_terms
from octnas.space.search_space import SearchSpace

LONGEST = 1e6
"""Seconds; longer times are refused."""


@dataclass(frozen=True)
class LayerTimes:
    """The times of one layer.

    Attributes:
        name: of its convolution, or of the shortcut that it is.
        site_in: site of the input; None for an image.
        site_out: site of the output.
        seconds: of the layer alone, by quantized α of input (0 for an image) and output.
    """

    name: str
    site_in: str | None
    site_out: str
    seconds: Mapping[tuple[float, float], float]


@dataclass(frozen=True)
class Quality:
    """How well a table predicts whole networks that it was not fitted to.

    Attributes:
        networks: their number.
        error, worst: median and largest relative error.
        tau, rho: Kendall's and Spearman's rank correlation; None if undefined.
        ceiling: τ between the networks' times in even and in odd rounds, the noise ceiling.
        width: largest predicted time over the smallest, minus 1.
    """

    networks: int
    error: float
    worst: float
    tau: float | None
    rho: float | None
    ceiling: float | None
    width: float


@dataclass(frozen=True)
class MeasuredNetwork:
    """A whole network that was measured.

    Attributes:
        use: ``"fit"``, ``"check"`` or ``"narrow"``.
        alphas: by site.
        seconds: for a batch, over all rounds.
        even, odd: over the even and the odd rounds.
    """

    use: str
    alphas: Mapping[str, float]
    seconds: float
    even: float
    odd: float


SCHEMA = 2
_READ = (1, SCHEMA)  # 1 had no sites
_STEPS = 40_000  # levels of latency: few enough for exact counts, finer than can be measured


@dataclass(frozen=True, kw_only=True)
class LatencyUse:
    """Section ``latency``: predicted and measured latency.

    Attributes:
        table: file written by ``octnas latency``, required for budgets on latency; empty for none.
        measure: whether to measure the latency of the chosen networks on this machine, to compare
            with the predictions.
        device: torch device of these measurements.
    """

    table: str = ""
    measure: bool = field(default=True, metadata=HOW)
    device: str = field(default="cpu", metadata=HOW)


@dataclass(frozen=True)
class LatencyTable:
    """Predicted latency of every architecture of a search space.

    Attributes:
        device: name of the measured device.
        backend, precision, batch, threads: as for `octnas bench`.
        geometry: digest of the network, see `geometry_of`.
        layers: every layer of the network.
        constant: seconds added to every network.
        factor: of a layer's time in a network over its time alone.
        sites: seconds added by site and quantized α, for costs between layers, such as changes of
            memory layout.
        quality: on whole networks: ``"all"``, ``"spread"`` (over the range) and ``"narrow"`` (of
            nearly equal predictions); empty if none were measured.
        networks: those that the table was fitted to and evaluated on.
    """

    device: str
    backend: str
    precision: str
    batch: int
    threads: int
    geometry: str
    layers: tuple[LayerTimes, ...]
    constant: float = 0.0
    factor: float = 1.0
    sites: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    quality: Mapping[str, Quality] = field(default_factory=dict)
    networks: tuple[MeasuredNetwork, ...] = ()

    def predict(self, space: SearchSpace, alphas: Mapping[str, float]) -> float:
        """Seconds that an architecture takes for a batch.

        Args:
            space: of the network that was measured; its choices must be among those measured.
            alphas: one of the choices by site; other sites are at their first choice.

        Raises:
            LatencyError: the table is of another network, or lacks a choice of the space.
            ArchitectureError: an α that is not among the choices of its site.
        """
        return self.cost(space).of(alphas) * 1e-9

    def cost(self, space: SearchSpace) -> AdditiveCost:
        """The latency of a space's architectures in nanoseconds, in steps of `resolution`.

        Raises:
            LatencyError: the table is for another network, or lacks a choice of the space.
        """
        here = f"the latency table ({self.device}, {self.backend})"
        if (found := geometry_of(space)) != self.geometry:
            raise LatencyError(
                f"{here} is for another network (geometry {self.geometry}, the experiment's is "
                f"{found}); measure it with `octnas latency`"
            )
        ends = [(layer.name, {layer.site_in, layer.site_out} - {None}) for layer in self.layers]
        ends += [(name, {name}) for name in self.sites]
        if wrong := [name for name, sites in ends if not sites <= set(space.site)]:
            raise LatencyError(
                f"{here} has sites that the network lacks, at {wrong[0]}; measure it with "
                "`octnas latency`"
            )
        terms = [self._term(layer, space) for layer in self.layers]
        for name, seconds in self.sites.items():
            times = np.array([seconds.get(alpha, 0.0) for alpha in space.site[name].choices])
            terms.append(((name,), self._rounded(times)))
        constant = self._nanoseconds(self.constant)
        vanilla = sum(self._nanoseconds(self._at(layer, 0.0, 0.0)) for layer in self.layers)
        vanilla += sum(self._nanoseconds(times.get(0.0, 0.0)) for times in self.sites.values())
        return AdditiveCost("latency", space, constant, sum_terms(terms), constant + vanilla)

    def _term(self, layer: LayerTimes, space: SearchSpace) -> tuple[tuple[str, ...], np.ndarray]:
        out = space.site[layer.site_out].choices
        if layer.site_in is None:
            times = np.array([self._at(layer, 0.0, b) for b in out])
            return (layer.site_out,), self._rounded(times)
        into = space.site[layer.site_in].choices
        tied = layer.site_in == layer.site_out
        times = np.array(
            [[self._at(layer, a, b) if not tied or a == b else 0.0 for b in out] for a in into]
        )
        return (layer.site_in, layer.site_out), self._rounded(times)

    def _at(self, layer: LayerTimes, alpha_in: float, alpha_out: float) -> float:
        """Seconds of a layer in a network."""
        if (alpha_in, alpha_out) not in layer.seconds:
            raise LatencyError(
                f"the latency table ({self.device}, {self.backend}) lacks {layer.name} from α "
                f"{alpha_in:g} to {alpha_out:g}; measure the experiment with `octnas latency`"
            )
        return self.factor * layer.seconds[alpha_in, alpha_out]

    def _nanoseconds(self, seconds: float) -> int:
        return int(self._rounded(np.array(seconds)))

    def _rounded(self, seconds: np.ndarray) -> np.ndarray:
        step = self.resolution
        return integers(seconds * 1e9 / step) * step

    @cached_property
    def resolution(self) -> int:
        """Nanoseconds that every entry is a multiple of."""
        spans = [self.factor * _span(layer.seconds) for layer in self.layers]
        spans += [_span(times) for times in self.sites.values()]
        return max(1, ceil(sum(spans) * 1e9 / _STEPS))

    def to_dict(self) -> dict[str, Any]:
        """The table as a JSON document with a schema version."""
        layers = [
            {**asdict(layer), "seconds": [[*pair, time] for pair, time in layer.seconds.items()]}
            for layer in self.layers
        ]
        return {
            "schema": SCHEMA,
            **{key: getattr(self, key) for key in _PLAIN},
            "layers": layers,
            "sites": {name: list(times.items()) for name, times in self.sites.items()},
            "quality": {name: asdict(found) for name, found in self.quality.items()},
            "networks": [asdict(one) for one in self.networks],
        }

    @staticmethod
    def from_dict(document: Any) -> "LatencyTable":
        """Read what `to_dict` wrote, also after a round trip through JSON.

        Raises:
            LatencyError: other contents, or impossible times.
        """
        if not isinstance(document, Mapping) or document.get("schema") not in _READ:
            found = document.get("schema") if isinstance(document, Mapping) else document
            raise LatencyError(f"latency table: schema: found {found!r}, allowed: {SCHEMA}")
        try:
            values = {key: read_as(kind, document[key]) for key, kind in _PLAIN.items()}
            layers = tuple(_read_layer(entry) for entry in document["layers"])
            sites = {
                name: {float(alpha): float(seconds) for alpha, seconds in pairs}
                for name, pairs in document.get("sites", {}).items()
            }
            for name, times in sites.items():
                if not times or not all(abs(seconds) <= LONGEST for seconds in times.values()):
                    raise ValueError(f"seconds of site {name!r}")
            quality = read_as(dict[str, Quality], document["quality"])
            networks = read_as(tuple[MeasuredNetwork, ...], document["networks"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise LatencyError(f"latency table: wrong contents ({reason})") from None
        if not (layers and abs(values["constant"]) <= LONGEST and 0 < values["factor"] <= LONGEST):
            raise LatencyError("latency table: found no layers, or a factor that is not above 0")
        for key, least in (("batch", 1), ("threads", 0)):
            if values[key] < least:
                raise LatencyError(
                    f"latency table: {key}: found {values[key]}, allowed: {least} or more"
                )
        table = LatencyTable(
            **values, layers=layers, sites=sites, quality=quality, networks=networks
        )
        # Each number may be small enough, and their sum in nanoseconds overflow int64.
        if table._most() > LONGEST:
            raise LatencyError(
                f"latency table: networks could take {table._most():.3g} seconds, allowed: up to "
                f"{LONGEST:g}"
            )
        return table

    def _most(self) -> float:
        """An upper bound on the absolute value of any prediction, in seconds."""
        layers = sum(max(layer.seconds.values()) for layer in self.layers)
        sites = sum(max(map(abs, times.values())) for times in self.sites.values())
        return abs(self.constant) + self.factor * layers + sites


def _read_layer(entry: Mapping[str, Any]) -> LayerTimes:
    seconds = {(float(a), float(b)): float(time) for a, b, time in entry["seconds"]}
    if not seconds or not all(0 <= time <= LONGEST for time in seconds.values()):
        raise ValueError(f"seconds of layer {entry['name']!r}")
    site_in = None if entry["site_in"] is None else read_as(str, entry["site_in"])
    return LayerTimes(
        read_as(str, entry["name"]), site_in, read_as(str, entry["site_out"]), seconds
    )


_PLAIN: Mapping[str, Any] = {
    "device": str,
    "backend": str,
    "precision": str,
    "batch": int,
    "threads": int,
    "geometry": str,
    "constant": float,
    "factor": float,
}


def _span(seconds: Mapping[Any, float]) -> float:
    return max(seconds.values()) - min(seconds.values())


def geometry_of(space: SearchSpace) -> str:
    """A short digest of a space's network, without its α choices.

    The number of classes is left out, since the classifier belongs to no layer.
    """
    args = {key: value for key, value in space.backbone_args.items() if key != "num_classes"}
    backbone = {
        "backbone": space.backbone,
        "backbone_args": args,
        "input_size": list(space.input_size),
        "stride_mode": space.stride_mode,
        "convs": [asdict(conv) for conv in space.convs],
    }
    canonical = json.dumps(backbone, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()[:12]
