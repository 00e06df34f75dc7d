"""Settings of benchmarks and latency tables, importable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from octnas.errors import require, require_at_least

BACKENDS = ("eager", "compile", "onnxruntime", "openvino")
MODES = ("inference", "training")
PRECISIONS = ("float32", "bfloat16")

# Label of the network without octave convolutions, which is always measured.
VANILLA = "0"

# α of the network, or α by site name pattern.
AlphaChoice = float | Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What `octnas.measure.bench` compares.

    Attributes:
        model: name of a timm ResNet.
        input_size: height and width of the images.
        alphas: octave networks by label, as arguments of `octnas.octavize`.
        channel_multiple: low channels are rounded down to a multiple of this.
        batches: batch sizes.
        backends: from `BACKENDS`; training supports the first two.
        mode: one of `MODES`. A training step is forward, loss, backward and the SGD update.
        device: torch device.
        precision: one of `PRECISIONS`; training uses autocast.
        threads: CPU threads; 0 for each backend's default.
        repeats: times that every network is measured, interleaved with the others.
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
        require(self.precision in PRECISIONS, "precision", self.precision, ", ".join(PRECISIONS))
        require(VANILLA not in self.alphas, "alphas", VANILLA, "others; vanilla is always measured")
        allowed = BACKENDS if self.mode == "inference" else BACKENDS[:2]
        for backend in self.backends:
            require(backend in allowed, "backends", backend, ", ".join(allowed))
        on_cpu = self.device == "cpu" or not {"onnxruntime", "openvino"} & set(self.backends)
        require(on_cpu, "backends", self.backends, f"eager and compile on device {self.device!r}")
        plain = self.precision == "float32" or not {"onnxruntime", "openvino"} & set(self.backends)
        require(plain, "precision", self.precision, "float32 with ONNX Runtime and OpenVINO")
        require(len(self.alphas) > 0, "alphas", dict(self.alphas), "one or more")
        for key, values in (("backends", self.backends), ("batch", self.batches)):
            require(len(values) > 0, key, values, "one or more")
            require(len(set(values)) == len(values), key, values, "every value once")
        require(min(self.batches) >= 1, "batch", self.batches, "1 or more")
        require_at_least(self, 1, "input_size")
        require_at_least(self, 0, "threads")
        # The minimum for a distribution-free 95 % interval.
        require_at_least(self, 6, "repeats")


@dataclass(frozen=True, kw_only=True)
class TrainingBenchSettings:
    """How a benchmark interleaves training steps with something else.

    Attributes:
        batch_size: images per step.
        device: torch device of the training.
        precision: ``float32``, or ``bfloat16`` by autocast.
        threads: CPU threads; 0 for torch's default.
        repeats: interleaved rounds.
    """

    batch_size: int = 64
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 0
    repeats: int = 20

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "batch", self.batch_size, "2 or more")
        require(self.precision in PRECISIONS, "precision", self.precision, ", ".join(PRECISIONS))
        require_at_least(self, 0, "threads")
        # The minimum for a distribution-free 95 % interval.
        require_at_least(self, 6, "repeats")


@dataclass(frozen=True)
class Engine:
    """What runs a network, see `BenchSettings`."""

    backend: str
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """How a latency table is measured.

    Attributes:
        name: name of the device; by default the machine's.
        backend: one of `BACKENDS`.
        device: torch device.
        precision: ``float32`` or ``bfloat16``.
        batch: batch size.
        threads: CPU threads; 0 for the backend's default.
        repeats: rounds in which everything is timed once.
        networks: whole networks to check the table with, over the whole range of predictions.
        narrow: further ones, with nearly equal predictions.
        fit: whole networks to fit the table to.
        width: width of the narrow range, as a share of its middle.
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
        require(self.backend in BACKENDS, "backend", self.backend, ", ".join(BACKENDS))
        require(self.precision in PRECISIONS, "precision", self.precision, ", ".join(PRECISIONS))
        torchs = self.backend in ("eager", "compile")
        require(torchs or self.device == "cpu", "device", self.device, f"cpu with {self.backend}")
        require(
            torchs or self.precision == "float32",
            "precision",
            self.precision,
            f"float32 with {self.backend}",
        )
        require_at_least(self, 1, "batch")
        require_at_least(self, 0, "threads")
        # The even and the odd rounds each have a median.
        require_at_least(self, 4, "repeats")
        require_at_least(self, 2, "fit")
        require_at_least(self, 0, "networks", "narrow")
        require(0 < self.width < 1, "width", self.width, "between 0 and 1")

    @property
    def engine(self) -> Engine:
        """What runs the networks."""
        return Engine(self.backend, self.device, self.precision, self.threads)
