"""Batch normalisation of octave feature maps."""

from dataclasses import dataclass

from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

from octnas.nn.octave import Features, OctaveTensor, merge_channels, split_channels


class OctaveBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that takes both parts of an octave tensor.

    Parameters, buffers and their keys are those of ``torch.nn.BatchNorm2d``, in the order of the
    channels; with one group the first channels serve the high part, the last ones the low part.

    Shape:
        - Input: ``(N, C, H, W)`` or an `OctaveTensor` of C channels in all.
        - Output: the same.
    """

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        return super().forward(x) if isinstance(x, Tensor) else normalise(self, x, values_of(self))


class OctaveBatchNormAct2d(BatchNormAct2d):
    """timm's batch normalisation with an activation, on both parts of an octave tensor."""

    def forward(self, x: Features) -> Features:
        if isinstance(x, Tensor):
            normalised: Tensor = super().forward(x)
            return normalised
        activated: Features = self.act(self.drop(normalise(self, x, values_of(self))))
        return activated


@dataclass(frozen=True)
class NormValues:
    """What normalises each channel, ``(C,)`` each; None where there is none."""

    mean: Tensor | None
    variance: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def values_of(norm: nn.BatchNorm2d) -> NormValues:
    """The parameters and statistics of a batch norm itself; statistics are updated in place."""
    return NormValues(norm.running_mean, norm.running_var, norm.weight, norm.bias)


def normalise(norm: nn.BatchNorm2d, x: OctaveTensor, values: NormValues) -> OctaveTensor:
    """Normalise each part with its channels' values, and update the statistics among them."""
    tracks = norm.training and norm.track_running_stats
    uses_running = not norm.training or tracks
    low, groups = x.low_channels, x.groups
    stats = [values.mean, values.variance] if uses_running else [None, None]
    # With one group the halves are views, and their update is that of the whole.
    copies = tracks and groups > 1
    taken = [whole.clone() if copies and whole is not None else whole for whole in stats]
    means, variances, weights, biases = (
        _split(entry, low, groups) for entry in (*taken, values.weight, values.bias)
    )
    factor = count_batch(norm) if tracks else 0.0

    def part(x: Tensor, index: int) -> Tensor:
        if not x.shape[1]:
            return x
        return F.batch_norm(
            x,
            means[index],
            variances[index],
            weights[index],
            biases[index],
            training=norm.training or values.mean is None,
            momentum=factor,
            eps=norm.eps,
        )

    normalised = OctaveTensor(part(x.high, 0), part(x.low, 1), groups)
    if copies:
        for whole, (high_half, low_half) in zip(stats, (means, variances), strict=True):
            if whole is not None and high_half is not None and low_half is not None:
                whole.copy_(merge_channels(high_half, low_half, groups, dim=0))
    return normalised


def _split(
    values: Tensor | None, low_channels: int, groups: int
) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if values is None else split_channels(values, low_channels, groups)


def count_batch(norm: nn.BatchNorm2d) -> float:
    """Count one batch, as torch does; the weight of its statistics in the running ones."""
    if norm.num_batches_tracked is None:
        return 0.0
    norm.num_batches_tracked.add_(1)
    if norm.momentum is None:  # cumulative average
        return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum
