"""What a benchmark measures, and what a latency table is measured with."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from octnas.errors import require

BACKENDS = ("eager", "compile", "onnxruntime", "openvino")
MODES = ("inference", "training")
PRECISIONS = ("float32", "bfloat16")

# Label of the network without octave features, which is always measured.
VANILLA = "0"

# α of the network, or α by site name pattern.
AlphaChoice = float | Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What `octnas.measure.bench` compares, and how long it looks.

    Attributes:
        model: name of a timm ResNet.
        input_size: height and width of the images.
        alphas: octave networks by label, as `octnas.octavize` takes them.
        channel_multiple: low channels are rounded down to a multiple of this.
        batches: batch sizes.
        backends: of `BACKENDS`; training knows the first two.
        mode: of `MODES`. A training step is forward, loss, backward and the SGD update.
        device: as torch names it.
        precision: of `PRECISIONS`; training uses it by autocast.
        threads: of the CPU; 0 leaves it to each backend.
        repeats: how often every network is timed; they take turns.
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
        require(self.input_size >= 1, "input_size", self.input_size, "1 or more")
        require(self.threads >= 0, "threads", self.threads, "0 or more")
        # The fewest for a 95 % interval without assumptions.
        require(self.repeats >= 6, "repeats", self.repeats, "6 or more")


@dataclass(frozen=True, kw_only=True)
class TrainingBenchSettings:
    """How long a benchmark looks in which training steps take turns with something.

    Attributes:
        batch_size: images of a step.
        device: that trains, as torch names it.
        precision: of the step: ``float32``, or ``bfloat16`` by autocast.
        threads: of the CPU; 0 leaves it to torch.
        repeats: turns.
    """

    batch_size: int = 64
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 0
    repeats: int = 20

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "batch", self.batch_size, "2 or more")
        require(self.precision in PRECISIONS, "precision", self.precision, ", ".join(PRECISIONS))
        require(self.threads >= 0, "threads", self.threads, "0 or more")
        # The fewest for a 95 % interval without assumptions.
        require(self.repeats >= 6, "repeats", self.repeats, "6 or more")


@dataclass(frozen=True)
class Engine:
    """What carries out a network: see `BenchSettings`."""

    backend: str
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """What a latency table is measured with.

    Attributes:
        name: of the device; by default the machine's.
        backend: of `BACKENDS`.
        device: as torch names it.
        precision: ``float32`` or ``bfloat16``.
        batch: images at a time.
        threads: of the CPU; 0 leaves it to the backend.
        repeats: rounds in which everything is timed once.
        networks: whole networks that the table is held against, over the whole range of
            predictions.
        narrow: more of them, of nearly equal predictions.
        fit: whole networks that it is fitted to.
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
        require(self.batch >= 1, "batch", self.batch, "1 or more")
        require(self.threads >= 0, "threads", self.threads, "0 or more")
        # Of the even and of the odd rounds there is a median each.
        require(self.repeats >= 4, "repeats", self.repeats, "4 or more")
        require(self.fit >= 2, "fit", self.fit, "2 or more")
        for key in ("networks", "narrow"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        require(0 < self.width < 1, "width", self.width, "between 0 and 1")

    @property
    def engine(self) -> Engine:
        """What computes."""
        return Engine(self.backend, self.device, self.precision, self.threads)
