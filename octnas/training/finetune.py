"""Candidates that train on their own for a few steps before they are scored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count, islice

import torch
from torch import nn

from octnas.data.images import Batch, Images, TrainingBatches
from octnas.nn.supernet import subnet
from octnas.training.loop import train
from octnas.training.settings import Recipe


@dataclass(frozen=True)
class Finetune:
    """A short training from the supernet's weights, from a learning rate down to none.

    A supernet's weights are a compromise between all architectures. At a learning rate as high as
    that of a training, a candidate leaves it within tens of steps, and its score then tells more
    about what it can become.

    Attributes:
        steps: how many; the same images in the same order for every candidate.
        recipe: whose optimizer, batch size, precision and clipping they have, and whose ``lr``
            they begin with.
    """

    steps: int
    recipe: Recipe

    def __call__(
        self,
        supernet: nn.Module,
        alphas: Mapping[str, float],
        images: Images,
        device: torch.device,
    ) -> nn.Module:
        """A trained copy of one architecture; the supernet stays as it is.

        Args:
            supernet: trained.
            alphas: by site.
            images: whose training part it learns.
            device: where to train.

        Raises:
            TrainingError: the loss became infinite or NaN.
        """
        network = subnet(supernet, alphas)
        recipe = replace(self.recipe, epochs=1, warmup_epochs=0.0, ema=0.0)
        size = min(recipe.batch_size, images.count("train"))
        batches = _FirstSteps(images.train_batches(size, seed=0), self.steps)
        train(network, batches, recipe, device=device)
        return network


@dataclass(frozen=True)
class _FirstSteps:
    """An epoch that is a number of steps long, shorter or longer than the training part."""

    batches: TrainingBatches
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        first = number * self.steps + start
        begun, left_out = divmod(first, len(self.batches))
        epochs = (
            self.batches.epoch(epoch, left_out if epoch == begun else 0) for epoch in count(begun)
        )
        return islice(chain.from_iterable(epochs), self.steps - start)
