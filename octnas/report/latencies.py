"""How long the networks of a report take, on some devices."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from octnas.latency_records import LONGEST


@dataclass(frozen=True)
class Timing:
    """The latency of a whole network that was measured, in seconds for a batch.

    Attributes:
        median: over all rounds.
        p95: that 95 % of the rounds stay below; None where rounds were not kept.
    """

    median: float
    p95: float | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError for what is no time."""
        for name, seconds in (("median", self.median), ("p95", self.p95)):
            if seconds is not None and not 0 < seconds <= LONGEST:
                raise ValueError(f"{name}: found {seconds}, allowed: above 0, up to {LONGEST:g} s")


@dataclass(frozen=True)
class Latencies:
    """What is known of one device with one backend, precision, batch size and count of threads.

    Attributes:
        device: its name.
        backend, precision, batch, threads: as `octnas latency` names them.
        measured: by architecture id.
        predicted: seconds by architecture id, from a table of layer times.
        own: whether that is the run's own table, which its budgets on latency are held to.
    """

    device: str
    backend: str
    precision: str
    batch: int
    threads: int
    measured: Mapping[str, Timing] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    own: bool = False

    @property
    def conditions(self) -> tuple[str, str, str, int, int]:
        """What two have in common that are about the same."""
        return (self.device, self.backend, self.precision, self.batch, self.threads)

    @property
    def name(self) -> str:
        """Such as ``"laptop, onnxruntime, float32, batch 1, threads 4"``."""
        return f"{self.device}, {self.settings}"

    @property
    def settings(self) -> str:
        """The same without the device."""
        threads = self.threads or "any"
        return f"{self.backend}, {self.precision}, batch {self.batch}, threads {threads}"


def most_known_first(
    latencies: Sequence[Latencies], identities: Collection[str]
) -> tuple[Latencies, ...]:
    """The devices that have measured most of some networks first, then those that predict most.

    A table shows one device at a time, and begins with the first.
    """

    asked = set(identities)

    def known(one: Latencies) -> tuple[int, int]:
        return len(asked & one.measured.keys()), len(asked & one.predicted.keys())

    return tuple(sorted(latencies, key=known, reverse=True))
