"""What an octave convolution costs, in closed form and without torch.

Conventions, as in the paper (arXiv 1904.05049, §3.3 and table 1): one multiply-add counts as one
MAC; convolutions and linear layers are counted; pooling, upsampling, normalisation and additions
are not. Activation memory is the sum of the convolutions' outputs of one image.

The functions are plain arithmetic in α, so that floats, numpy arrays and tensors all go through
the same lines.
"""

from dataclasses import dataclass
from math import ceil, floor, lcm
from typing import Any, TypeVar

Number = TypeVar("Number", float, Any)

BYTES_PER_ACTIVATION = 4  # float32


@dataclass(frozen=True)
class ConvShape:
    """A convolution as its cost sees it.

    Attributes:
        name: the module's name in the model.
        in_channels, out_channels, groups: as in ``torch.nn.Conv2d``.
        kernel: ``(height, width)`` of the kernel.
        out_size: ``(height, width)`` of the output at full resolution.
        site_in: the site that the input's α belongs to; None for a plain input (an image), and
            where a pooled stride brings the low input to the output's high resolution, so that
            the cost does not depend on the input's α.
        site_out: the site that the output's α belongs to.
    """

    name: str
    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, int]
    out_size: tuple[int, int]
    site_in: str | None
    site_out: str

    @property
    def macs_per_pixel(self) -> int:
        """MACs for one output position, all channels."""
        return self.in_channels // self.groups * self.out_channels * self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Positions of the output at full resolution."""
        return self.out_size[0] * self.out_size[1]

    @property
    def low_pixels(self) -> int:
        """Positions of the output at half resolution: odd sides are rounded up."""
        return ceil(self.out_size[0] / 2) * ceil(self.out_size[1] / 2)

    @property
    def depthwise(self) -> bool:
        """Whether every channel is its own group: then only the paths H→H and L→L exist."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels


@dataclass(frozen=True)
class Cost:
    """The cost of one network for one image.

    Attributes:
        macs: multiply-adds of convolutions and linear layers (the paper's "FLOPs").
        params: learnable parameters; the same for every α.
        activation_bytes: the convolutions' outputs in float32.
    """

    macs: int
    params: int
    activation_bytes: int


def conv_macs(shape: ConvShape, alpha_in: Number, alpha_out: Number) -> Number:
    """MACs of an octave convolution for the quantized shares of low channels.

    The four paths H→H, H→L, L→H, L→L cost ``c·(1-a_in)(1-a_out)`` at full resolution and
    ``c·q`` times the rest at half resolution (paper, §3.3, with q = 1/4 for even maps). With
    ``alpha_in = 0`` this is also the cost of a pooled stride: both its inputs reach the output's
    high resolution without a low path.

    Args:
        shape: the convolution; with ``site_in`` None, ``alpha_in`` is taken as 0.
        alpha_in: share of low input channels, a float or an array.
        alpha_out: share of low output channels, a float or an array of the same shape.
    """
    full = shape.macs_per_pixel * shape.pixels
    low = shape.macs_per_pixel * shape.low_pixels
    if shape.depthwise:
        return low + (full - low) * (1 - alpha_out)
    if shape.site_in is None:
        alpha_in = alpha_in * 0
    return low + (full - low) * (1 - alpha_in) * (1 - alpha_out)


def conv_activations(shape: ConvShape, alpha_out: Number) -> Number:
    """Values that the convolution puts out for one image (paper, table 1: memory)."""
    low = shape.out_channels * shape.low_pixels
    full = shape.out_channels * shape.pixels
    return low + (full - low) * (1 - alpha_out)


def low_channels(alpha: float, channels: int, multiple: int, groups: int = 1) -> int:
    """The low channels that α of ``channels`` comes to.

    Rounded down to a multiple of lcm(``groups``, ``multiple``); α = 1 is always all of them, and
    a quantized share ``low / channels`` comes back as the same number.

    Args:
        alpha: octave ratio in [0, 1].
        channels: output channels of the convolution.
        multiple: ``channel_multiple`` of the architecture.
        groups: groups of the convolution that puts them out.
    """
    if alpha >= 1.0:
        return channels
    step = lcm(multiple, groups)
    # The small term keeps shares such as 0.3 * 10 = 2.9999999999999996 from losing a channel.
    return min(channels, floor(alpha * channels / step + 1e-9) * step)


@dataclass(frozen=True)
class Bound:
    """A bound on another cost than MACs.

    Attributes:
        cost: ``"activation"`` (bytes of one image) or ``"latency"`` (nanoseconds of a batch).
        upper: no architecture above this fits.
        lower: no architecture below this fits.
    """

    cost: str
    upper: int
    lower: int = 0

    def admits(self, cost: int) -> bool:
        """Whether a cost lies within the bounds, both included."""
        return self.lower <= cost <= self.upper


@dataclass(frozen=True)
class Budget:
    """A bound on MACs, or on another cost: upper, and optionally lower.

    Attributes:
        name: what reports call it, such as ``"uniform α 0.5"``.
        max_macs: no architecture above this fits.
        min_macs: no architecture below this fits.
        uniform: the uniform α whose MACs define the budget, if it was given so.
        bound: what defines the budget if MACs do not: then those above are only the most and the
            fewest MACs of the architectures below its upper bound.
    """

    name: str
    max_macs: int
    min_macs: int = 0
    uniform: float | None = None
    bound: Bound | None = None

    def admits(self, macs: int) -> bool:
        """Whether ``macs`` lies within the bounds, both included."""
        return self.min_macs <= macs <= self.max_macs
