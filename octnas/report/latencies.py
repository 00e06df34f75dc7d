"""How long the networks of a report take, on some devices."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timing:
    """The latency of a whole network that was measured, in seconds for a batch.

    Attributes:
        median: over all rounds.
        p95: that 95 % of the rounds stay below; None where rounds were not kept.
    """

    median: float
    p95: float | None = None


@dataclass(frozen=True)
class Latencies:
    """What is known of one device with one backend, precision and batch size.

    Attributes:
        device: its name.
        backend, precision, batch, threads: as `octnas latency` names them.
        measured: by architecture id.
        predicted: seconds by architecture id, from a table of layer times.
    """

    device: str
    backend: str
    precision: str
    batch: int
    threads: int
    measured: Mapping[str, Timing] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)

    @property
    def conditions(self) -> tuple[str, str, str, int, int]:
        """What two have in common that are about the same."""
        return (self.device, self.backend, self.precision, self.batch, self.threads)

    @property
    def name(self) -> str:
        """Such as ``"laptop, onnxruntime, float32, batch 1"``."""
        return f"{self.device}, {self.backend}, {self.precision}, batch {self.batch}"

    def seconds(self, identity: str) -> float | None:
        """The measured median, or else what is predicted; None where neither is known."""
        if identity in self.measured:
            return self.measured[identity].median
        return self.predicted.get(identity)
