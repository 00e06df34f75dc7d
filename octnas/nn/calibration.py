"""Batch-norm statistics for one architecture."""

from collections.abc import Iterable
from itertools import chain

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

    Raises:
        ValueError: no batch at all.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("recalibrate: found no batch to average over")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in model.modules()]
    try:
        update_bn(chain([first], iterator), model)
    finally:
        # torch puts back neither if a batch fails, and one mode for all modules if none does.
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
