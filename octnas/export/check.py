"""Check on real images that an exported network computes what its source computes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octnas.data.batches import Batch
from octnas.errors import ExportError
from octnas.export.settings import Tolerance


@dataclass(frozen=True)
class Answers:
    """The source's predictions.

    Attributes:
        logits: ``(images, classes)`` float32.
        labels: ``(images,)``.
    """

    logits: Tensor
    labels: Tensor

    @property
    def top1(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return _share(self.logits.argmax(1) == self.labels)


@dataclass(frozen=True)
class Comparison:
    """An exported network compared with its source.

    Attributes:
        images: how many were compared.
        difference: the largest difference of a logit, relative to the largest logit of its image.
        agreement: share of the images for which both predict the same class.
        top1: the exported network's top-1 accuracy, 0 to 1.
    """

    images: int
    difference: float
    agreement: float
    top1: float

    def refusal(self, allowed: Tolerance) -> str:
        """Why the exported network is refused; empty if it is accepted."""
        wrong = []
        if not self.difference <= allowed.difference:  # also NaN
            wrong.append(
                f"logits differ by {self.difference:.2g} of an image's largest, allowed: "
                f"{allowed.difference:g}"
            )
        if not self.agreement >= allowed.agreement:
            wrong.append(
                f"{self.agreement:.2%} of {self.images:,} predictions agree with the source's, "
                f"allowed: {allowed.agreement:.2%} or more"
            )
        return "; ".join(wrong)


@torch.inference_mode()
def answers(network: nn.Module, batches: Iterable[Batch]) -> Answers:
    """The predictions of a network in eval mode, on the CPU; see `check_trained`."""
    pairs = [(network(images), labels) for images, labels in batches]
    found = Answers(torch.cat([logits for logits, _ in pairs]), torch.cat([y for _, y in pairs]))
    check_trained(found.logits)
    return found


def check_trained(logits: Tensor) -> None:
    """Raise an `ExportError` if all logits are nearly zero: nothing could be compared with them."""
    if not logits.abs().max() > 1e-6:
        raise ExportError("the logits are all but zero; the network was not trained")


def compare(
    run: Callable[[Tensor], Tensor], batches: Iterable[Batch], expected: Answers
) -> Comparison:
    """Compare an exported network with its source's predictions on the same images."""
    logits = torch.cat([run(images) for images, _ in batches])
    apart = (logits - expected.logits).abs().amax(1) / expected.logits.abs().amax(1)
    return Comparison(
        images=len(logits),
        difference=float(apart.max()),
        agreement=_share(logits.argmax(1) == expected.logits.argmax(1)),
        top1=_share(logits.argmax(1) == expected.labels),
    )


def _share(which: Tensor) -> float:
    return float(which.double().mean())
