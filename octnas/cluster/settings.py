"""Settings of Ray, importable without Ray."""

from dataclasses import dataclass, field

from octnas.errors import require
from octnas.settings import HOW


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Section ``ray``: where stages with ``executor: ray`` run.

    Attributes:
        address: empty starts Ray on this machine for the run; ``auto`` or ``HOST:PORT`` connects to
            a running cluster. Its nodes need octnas and the same paths to the run directory and
            the images.
        gpus: GPUs of each worker, such as 1 or 0.25; 0 lets workers share the GPUs of their
            machine.
    """

    address: str = field(default="", metadata=HOW)
    gpus: float = field(default=0.0, metadata=HOW)

    def __post_init__(self) -> None:
        fits = self.gpus >= 0 and (self.gpus <= 1 or self.gpus == int(self.gpus))
        require(fits, "gpus", self.gpus, "0 to 1, or a whole number")
