"""What an octave convolution costs, in closed form and without torch.

Conventions as in the paper (arXiv 1904.05049, §3.3 and table 1): one multiply-add is one MAC;
convolutions and linear layers are counted; pooling, upsampling, normalisation and additions are
not. Activation memory is the sum of the convolutions' outputs for one image.

The functions are plain arithmetic in α and take floats, numpy arrays and tensors.
"""

from dataclasses import dataclass
from math import ceil, floor, lcm
from typing import Any, TypeVar

Number = TypeVar("Number", float, Any)

BYTES_PER_ACTIVATION = 4  # float32

PATHS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Source and target of H→H, H→L, L→H and L→L, as they are computed; 0 is high, 1 is low."""


@dataclass(frozen=True)
class ConvShape:
    """The shape of a convolution, from which its cost follows.

    Attributes:
        name: the module's name in the model.
        in_channels, out_channels, groups: as in ``torch.nn.Conv2d``.
        kernel: ``(height, width)`` of the kernel.
        out_size: ``(height, width)`` of the output at full resolution.
        site_in: site of the input; None if the cost does not depend on the input's α: for an
            image, and at a pooled stride, which brings the low input to the output's high
            resolution.
        site_out: site of the output.
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
        """Whether every channel is its own group; only the paths H→H and L→L exist."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels


@dataclass(frozen=True)
class Cost:
    """The cost of one network for one image.

    Attributes:
        macs: multiply-adds of convolutions and linear layers (the paper's "FLOPs").
        params: learnable parameters; the same for every α.
        activation_bytes: the convolutions' outputs, in float32.
    """

    macs: int
    params: int
    activation_bytes: int


def conv_macs(shape: ConvShape, alpha_in: Number, alpha_out: Number) -> Number:
    """MACs of an octave convolution for the quantized shares of low channels.

    The four paths H→H, H→L, L→H, L→L cost ``c·(1-a_in)(1-a_out)`` at full resolution and
    ``c·q`` times the rest at half resolution (paper, §3.3, with q = 1/4 for even maps). With
    ``alpha_in = 0`` this is also the cost of a pooled stride.

    Args:
        shape: the convolution; with ``site_in`` None, ``alpha_in`` is taken as 0.
        alpha_in, alpha_out: share of low input and output channels, floats or arrays.
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
    """α of ``channels``, rounded down to a multiple of lcm(``groups``, ``multiple``).

    α = 1 is always all of them, and a quantized share ``low / channels`` gives ``low`` again.

    Args:
        alpha: octave ratio in [0, 1].
        channels: output channels of the convolution.
        multiple: ``channel_multiple`` of the architecture.
        groups: groups of the convolution.
    """
    if alpha >= 1.0:
        return channels
    step = lcm(multiple, groups)
    # The small term is for shares such as 0.3 * 10 = 2.9999999999999996.
    return min(channels, floor(alpha * channels / step + 1e-9) * step)


@dataclass(frozen=True)
class Bound:
    """A bound on another cost than MACs.

    Attributes:
        cost: ``"activation"`` or ``"peak"`` (bytes of one image), ``"latency"`` (nanoseconds of a
            batch); of a budget's further bounds also ``"macs"``.
        upper, lower: both included.
    """

    cost: str
    upper: int
    lower: int = 0

    def admits(self, cost: int) -> bool:
        """Whether a cost is within the bounds."""
        return self.lower <= cost <= self.upper


@dataclass(frozen=True)
class Budget:
    """Upper bounds on one or more costs, and optionally a lower one on the first.

    Attributes:
        name: in reports, such as ``"uniform α 0.5"``.
        max_macs, min_macs: both included.
        uniform: the uniform α whose MACs define the budget, if it was given so.
        bound: the first bound if it is not on MACs; then ``max_macs`` and ``min_macs`` are only
            the extremes of the architectures below its upper bound.
        further: upper bounds on other costs.
    """

    name: str
    max_macs: int
    min_macs: int = 0
    uniform: float | None = None
    bound: Bound | None = None
    further: tuple[Bound, ...] = ()

    def admits(self, macs: int) -> bool:
        """Whether ``macs`` is within the bounds on MACs."""
        return self.min_macs <= macs <= self.max_macs

    @property
    def macs_alone(self) -> bool:
        """Whether it bounds nothing but MACs."""
        return self.bound is None and not self.further

    @property
    def first(self) -> Bound:
        """The first bound, on MACs if `bound` is None."""
        return self.bound or Bound("macs", self.max_macs, self.min_macs)

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """All bounds."""
        return (self.first, *self.further)
