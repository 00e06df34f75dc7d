"""Channel attention on octave feature maps: one gate per channel, from means of both parts."""

from timm.layers import EcaModule, EffectiveSEModule, SEModule
from torch import Tensor

from octnas.nn.octave import Features, OctaveTensor, merge_channels, split_channels


class OctaveSE(SEModule):
    """Squeeze-and-excitation (arXiv 1709.01507) over the channels of both resolutions."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            scaled: Tensor = super().forward(x)
            return scaled
        squeezed = self.act(self.bn(self.fc1(_squeeze(x, self.add_maxpool))))
        return _scale(x, self.gate(self.fc2(squeezed)))


class OctaveEffectiveSE(EffectiveSEModule):
    """Effective squeeze-and-excitation (arXiv 1911.06667) over both resolutions."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            scaled: Tensor = super().forward(x)
            return scaled
        return _scale(x, self.gate(self.fc(_squeeze(x, self.add_maxpool))))


class OctaveEca(EcaModule):
    """Efficient channel attention (arXiv 1910.03151), across neighbours in timm's channel order."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            scaled: Tensor = super().forward(x)
            return scaled
        squeezed = _squeeze(x)
        mixed = self.conv(squeezed.flatten(1).unsqueeze(1))  # (N, 1, C)
        if self.conv2 is not None:
            mixed = self.conv2(self.act(mixed))
        return _scale(x, self.gate(mixed).view_as(squeezed))


def _squeeze(x: OctaveTensor, add_maximum: bool = False) -> Tensor:
    """One value per channel, in the order of the channels: ``(N, C, 1, 1)``."""
    high, low = (part.mean((2, 3), keepdim=True) for part in (x.high, x.low))
    means = merge_channels(high, low, x.groups)
    if not add_maximum:
        return means
    high, low = (part.amax((2, 3), keepdim=True) for part in (x.high, x.low))
    return 0.5 * means + 0.5 * merge_channels(high, low, x.groups)


def _scale(x: OctaveTensor, gates: Tensor) -> OctaveTensor:
    if x.groups == 1:
        # Two slices and no split: of a split, inductor (torch 2.15) overwrites the gates in
        # backward while it still needs them, and all gradients before them are wrong.
        count = x.high.shape[1]
        high, low = gates[:, :count], gates[:, count:]
    else:
        high, low = split_channels(gates, x.low_channels, x.groups, dim=1)
    return OctaveTensor(x.high * high, x.low * low, x.groups)
