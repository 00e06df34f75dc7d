"""The layers without parameters that octave feature maps pass through."""

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from octnas.nn.octave import Features, OctaveTensor, each, empty_high, resplit


class OctaveReLU(nn.ReLU):
    """ReLU on both parts."""

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        return super().forward(x) if isinstance(x, Tensor) else each(super().forward, x)


class OctaveMaxPool2d(nn.MaxPool2d):
    """Max pooling of both parts, each at its own resolution, with the same kernel."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            pooled: Tensor = super().forward(x)
            return pooled
        low = super().forward(x.low)
        if x.high.shape[1]:
            return OctaveTensor(super().forward(x.high), low)
        # Without high channels only the size goes on, as one channel of any value would have it.
        size = super().forward(x.high.new_empty((1, 1, *x.high.shape[-2:]))).shape[-2:]
        return OctaveTensor(empty_high(low, *size), low)


class OctaveGlobalPool2d(SelectAdaptivePool2d):
    """Global pooling: each part apart, then high and low channels side by side.

    The result has all channels in their order, so a classifier needs no last layer at α = 0.
    """

    def forward(self, x: Features) -> Tensor:
        if isinstance(x, OctaveTensor):
            parts = [x.high, x.low] if x.high.shape[1] else [x.low]
            return torch.cat([super(OctaveGlobalPool2d, self).forward(p) for p in parts], dim=1)
        pooled: Tensor = super().forward(x)
        return pooled


class OctaveAlign(nn.Module):
    """Bring an identity shortcut to the split of the residual stream it joins; no parameters.

    Where a stage begins with an identity shortcut, its stream meets the one before it, which may
    have another α.
    """

    def __init__(self, channels: int, site: str) -> None:
        super().__init__()
        self.channels = channels
        self.site = site
        self.low_channels = 0

    def forward(self, x: Features) -> Features:
        return resplit(x, self.low_channels)

    def extra_repr(self) -> str:
        return f"{self.channels}, site={self.site!r}"
