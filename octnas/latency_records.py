"""What a latency table holds: times of layers, sites and whole networks, and how good it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octnas.documents import read_as

LONGEST = 1e6
"""Seconds: what takes longer is no time of a layer or a network."""


@dataclass(frozen=True)
class LayerTimes:
    """The times of one layer.

    Attributes:
        name: of its convolution, or of the shortcut that it is.
        site_in: site of the input; None for an image.
        site_out: site of the output.
        seconds: by realised α of input and output; that of an image is 0. What was measured of
            the layer by itself.
    """

    name: str
    site_in: str | None
    site_out: str
    seconds: Mapping[tuple[float, float], float]


@dataclass(frozen=True)
class Quality:
    """How well a table predicts whole networks that it was not fitted to.

    Attributes:
        networks: how many.
        error: median of the relative errors.
        worst: the largest of them.
        tau, rho: Kendall's and Spearman's rank correlation; None where nothing can be ranked.
        ceiling: τ between the networks' times in the even rounds and in the odd ones: what the
            noise of the machine leaves.
        width: largest predicted time over the smallest, less 1.
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
        even, odd: over every second round.
    """

    use: str
    alphas: Mapping[str, float]
    seconds: float
    even: float
    odd: float


def site_times(site: str, pairs: Any) -> dict[float, float]:
    """Read the seconds by α of a site, which may be below 0.

    Raises:
        ValueError, TypeError: they are none.
    """
    times = {float(alpha): float(seconds) for alpha, seconds in pairs}
    if not times or not all(abs(seconds) <= LONGEST for seconds in times.values()):
        raise ValueError(f"seconds of site {site!r}")
    return times


def layer_times(entry: Mapping[str, Any]) -> LayerTimes:
    """Read a layer of a document.

    Raises:
        ValueError, TypeError, LookupError: it is none.
    """
    seconds = {(float(a), float(b)): float(time) for a, b, time in entry["seconds"]}
    if not seconds or not all(0 <= time <= LONGEST for time in seconds.values()):
        raise ValueError(f"seconds of layer {entry['name']!r}")
    ends = read_as(str | None, entry["site_in"]), read_as(str, entry["site_out"])  # type: ignore[arg-type]
    return LayerTimes(read_as(str, entry["name"]), *ends, seconds)
