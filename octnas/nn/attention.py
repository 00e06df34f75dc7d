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
        return _scale(x, self.gates(_squeeze(x, self.add_maxpool)))

    def gates(self, squeezed: Tensor) -> Tensor:
        """One factor per channel from what `squeeze` gives: ``(N, C, 1, 1)`` both."""
        gates: Tensor = self.gate(self.fc2(self.act(self.bn(self.fc1(squeezed)))))
        return gates


class OctaveEffectiveSE(EffectiveSEModule):
    """Effective squeeze-and-excitation (arXiv 1911.06667) over both resolutions."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            scaled: Tensor = super().forward(x)
            return scaled
        return _scale(x, self.gates(_squeeze(x, self.add_maxpool)))

    def gates(self, squeezed: Tensor) -> Tensor:
        """One factor per channel from what `squeeze` gives: ``(N, C, 1, 1)`` both."""
        gates: Tensor = self.gate(self.fc(squeezed))
        return gates


class OctaveEca(EcaModule):
    """Efficient channel attention (arXiv 1910.03151), across neighbours in timm's channel order."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            scaled: Tensor = super().forward(x)
            return scaled
        return _scale(x, self.gates(_squeeze(x)))

    def gates(self, squeezed: Tensor) -> Tensor:
        """One factor per channel from what `squeeze` gives: ``(N, C, 1, 1)`` both."""
        mixed = self.conv(squeezed.flatten(1).unsqueeze(1))  # (N, 1, C)
        if self.conv2 is not None:
            mixed = self.conv2(self.act(mixed))
        gates: Tensor = self.gate(mixed)
        return gates.view_as(squeezed)


def _squeeze(x: OctaveTensor, add_maximum: bool = False) -> Tensor:
    """One value per channel, in the order of the channels: ``(N, C, 1, 1)``."""
    high, low = (squeeze(part, add_maximum) for part in (x.high, x.low))
    return merge_channels(high, low, x.groups)


def squeeze(x: Tensor, add_maximum: bool = False) -> Tensor:
    """The mean of every channel, or the middle of mean and maximum: ``(N, C, 1, 1)``."""
    means = x.mean((2, 3), keepdim=True)
    return 0.5 * means + 0.5 * x.amax((2, 3), keepdim=True) if add_maximum else means


def _scale(x: OctaveTensor, gates: Tensor) -> OctaveTensor:
    if x.groups == 1:
        # Two slices and no split: of a split, inductor (torch 2.15) overwrites the gates in
        # backward while it still needs them, and all gradients before them are wrong.
        count = x.high.shape[1]
        high, low = gates[:, :count], gates[:, count:]
    else:
        high, low = split_channels(gates, x.low_channels, x.groups, dim=1)
    return OctaveTensor(x.high * high, x.low * low, x.groups)
