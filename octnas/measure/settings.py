"""Settings of benchmarks and of latency measurements."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from octnas.errors import require

BACKENDS = ("eager", "compile", "onnxruntime", "openvino")
MODES = ("inference", "training")
PRECISIONS = ("float32", "bfloat16")

# Label of the vanilla network, which is always measured.
VANILLA = "0"

# α of the network, or α by site name pattern.
AlphaChoice = float | Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Settings of `octnas.measure.bench`.

    Attributes:
        model: name of a timm ResNet.
        input_size: height and width of the images.
        alphas: octave networks by label, see `octnas.octavize`.
        channel_multiple: low channels are rounded down to a multiple of this.
        batches: batch sizes.
        backends: of `BACKENDS`; in training the first two.
        mode: one of `MODES`. A training step is forward, loss, backward and an SGD update.
        device: as torch names it.
        precision: one of `PRECISIONS`; in training by autocast.
        threads: of the CPU; 0 is each backend's default.
        repeats: timings of each network, interleaved.
    """

    model: str = "resnet50"
    input_size: int = 224
    alphas: Mapping[str, AlphaChoice] = field(
        default_factory=lambda: {str(alpha): alpha for alpha in (0.125, 0.25, 0.5, 0.75)}
    )
    channel_multiple: int = 1
    batches: tuple[int, ...] = (1, 8)
    backends: tuple[str, ...] = ("eager",)
    mode: str = "inference"
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    repeats: int = 20

    def __post_init__(self) -> None:
        require(self.mode in MODES, "mode", self.mode, ", ".join(MODES))
        require(len(self.alphas) > 0, "alphas", dict(self.alphas), "one or more")
        require(VANILLA not in self.alphas, "alphas", VANILLA, "others; vanilla is always measured")
        allowed = BACKENDS if self.mode == "inference" else BACKENDS[:2]
        for key, values in (("backends", self.backends), ("batch", self.batches)):
            require(len(values) > 0, key, values, "one or more")
            require(len(set(values)) == len(values), key, values, "every value once")
        for backend in self.backends:
            require(backend in allowed, "backends", backend, ", ".join(allowed))
            _check_engine(backend, self.device, self.precision, self.threads)
        require(min(self.batches) >= 1, "batch", self.batches, "1 or more")
        require(self.input_size >= 1, "input_size", self.input_size, "1 or more")
        _check_repeats(self.repeats)


def _check_engine(backend: str, device: str, precision: str, threads: int) -> None:
    torch = backend in ("eager", "compile")
    require(backend in BACKENDS, "backend", backend, ", ".join(BACKENDS))
    require(torch or device == "cpu", "device", device, f"cpu with {backend}")
    require(precision in PRECISIONS, "precision", precision, ", ".join(PRECISIONS))
    require(torch or precision == "float32", "precision", precision, f"float32 with {backend}")
    require(threads >= 0, "threads", threads, "0 or more")


def _check_repeats(repeats: int) -> None:
    # The fewest for a 95 % interval without assumptions.
    require(repeats >= 6, "repeats", repeats, "6 or more")


@dataclass(frozen=True, kw_only=True)
class TrainingBenchSettings:
    """Settings of benchmarks that interleave training steps with something else.

    Attributes:
        batch_size: images of a step.
        device: as torch names it.
        precision: of the step: ``float32``, or ``bfloat16`` by autocast.
        threads: of the CPU; 0 is torch's default.
        repeats: rounds.
    """

    batch_size: int = 64
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 0
    repeats: int = 20

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "batch", self.batch_size, "2 or more")
        _check_engine("eager", self.device, self.precision, self.threads)
        _check_repeats(self.repeats)


@dataclass(frozen=True)
class Engine:
    """A backend with its settings, see `BenchSettings`."""

    backend: str
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """How a latency table is measured.

    Attributes:
        name: of the device; by default the machine's.
        backend, device, precision, threads: see `BenchSettings`.
        batch: images at a time.
        repeats: rounds in which everything is timed once.
        networks: whole networks that the table is evaluated on, over the range of predictions.
        narrow: more of them, of nearly equal predictions.
        fit: whole networks that the table is fitted to.
        width: of the narrow slice, as a share of the prediction in its middle.
    """

    name: str = ""
    backend: str = "eager"
    device: str = "cpu"
    precision: str = "float32"
    batch: int = 1
    threads: int = 1
    repeats: int = 20
    networks: int = 20
    narrow: int = 20
    fit: int = 60
    width: float = 0.1

    def __post_init__(self) -> None:
        _check_engine(self.backend, self.device, self.precision, self.threads)
        require(self.batch >= 1, "batch", self.batch, "1 or more")
        # There are medians over the even and the odd rounds.
        require(self.repeats >= 4, "repeats", self.repeats, "4 or more")
        require(self.fit >= 2, "fit", self.fit, "2 or more")
        for key in ("networks", "narrow"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        require(0 < self.width < 1, "width", self.width, "between 0 and 1")

    @property
    def engine(self) -> Engine:
        """The backend with its settings."""
        return Engine(self.backend, self.device, self.precision, self.threads)
