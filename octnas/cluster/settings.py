"""Which Ray the work of a run goes to, without Ray."""

from dataclasses import dataclass, field

from octnas.errors import require
from octnas.settings import HOW


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Section ``ray`` of an experiment, for what has ``executor: ray``.

    Attributes:
        address: empty for a Ray of the run's own on this machine; ``auto`` or ``HOST:PORT`` for
            the cluster that runs there, on whose nodes octnas is installed and the paths of the
            run directory and the images are the same.
        gpus: of each worker, such as 1 or 0.25; 0 if workers share what their machine has.
    """

    address: str = field(default="", metadata=HOW)
    gpus: float = field(default=0.0, metadata=HOW)

    def __post_init__(self) -> None:
        fits = self.gpus >= 0 and (self.gpus <= 1 or self.gpus == int(self.gpus))
        require(fits, "gpus", self.gpus, "0 to 1, or a whole number")
