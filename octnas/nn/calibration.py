"""Batch-norm statistics for one architecture."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by plain averages over some batches.

    Statistics belong to an architecture: those that a supernet has gathered are a mixture over
    all architectures it was trained with, and mislead a score. All batches should have one size,
    then their order does not matter.

    Args:
        model: with the architecture active; its training mode is left as it was.
        batches: of images ``(N, C, H, W)``, on the model's device.
    """
    update_bn(batches, model)
