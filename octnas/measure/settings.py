"""What a benchmark measures."""

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
