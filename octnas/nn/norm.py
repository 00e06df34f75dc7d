"""Batch normalisation of octave feature maps."""

from torch import Tensor, nn
from torch.nn import functional as F

from octnas.nn.octave import Features, OctaveTensor


class OctaveBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that takes both parts of an octave tensor.

    Parameters, buffers and their keys are those of ``torch.nn.BatchNorm2d``: the first channels
    serve the high part, the last ones the low part.

    Shape:
        - Input: ``(N, C, H, W)`` or an `OctaveTensor` of C channels in all.
        - Output: the same.
    """

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        if isinstance(x, Tensor):
            return super().forward(x)
        factor = self._count_batch()
        split = x.high.shape[1]
        high = self._normalise(x.high, slice(0, split), factor) if split else x.high
        return OctaveTensor(high, self._normalise(x.low, slice(split, None), factor))

    def _tracks(self) -> bool:
        return self.training and self.track_running_stats

    def _count_batch(self) -> float:
        """Count one batch, as torch does; the weight of its statistics in the running ones."""
        if not self._tracks() or self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        if self.momentum is None:  # cumulative average
            return 1.0 / float(self.num_batches_tracked)
        return self.momentum

    def _normalise(self, x: Tensor, channels: slice, factor: float) -> Tensor:
        def part(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[channels]

        uses_running = not self.training or self._tracks()
        return F.batch_norm(
            x,
            part(self.running_mean) if uses_running else None,
            part(self.running_var) if uses_running else None,
            part(self.weight),
            part(self.bias),
            training=self.training or self.running_mean is None,
            momentum=factor,
            eps=self.eps,
        )
