"""Whether what was exported computes what its source computes, on real images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octnas.data.batches import Batch
from octnas.errors import ExportError
from octnas.export.settings import Tolerance


@dataclass(frozen=True)
class Answers:
    """What the source says to some images.

    Attributes:
        logits: ``(images, classes)`` float32.
        labels: ``(images,)``.
    """

    logits: Tensor
    labels: Tensor

    @property
    def top1(self) -> float:
        """Share of the images whose class was found, 0 to 1."""
        return _share(self.logits.argmax(1) == self.labels)


@dataclass(frozen=True)
class Comparison:
    """How an exported network answers beside its source.

    Attributes:
        images: on how many.
        difference: the largest difference of a logit, as a share of the same image's largest one.
        agreement: share of the images for which both answer with the same class.
        top1: share of the images whose class the exported network finds.
    """

    images: int
    difference: float
    agreement: float
    top1: float

    def refusal(self, allowed: Tolerance) -> str:
        """Why it is not taken for the source; empty if it is."""
        wrong = []
        # Written so that what is no number is refused.
        if not self.difference <= allowed.difference:
            wrong.append(
                f"logits differ by {self.difference:.2g} of an image's largest, allowed: "
                f"{allowed.difference:g}"
            )
        if not self.agreement >= allowed.agreement:
            wrong.append(
                f"{self.agreement:.2%} of {self.images:,} answers are the source's, allowed: "
                f"{allowed.agreement:.2%} or more"
            )
        return "; ".join(wrong)


@torch.inference_mode()
def answers(network: nn.Module, batches: Iterable[Batch]) -> Answers:
    """What a network in eval mode says to some images, on the CPU.

    Raises:
        ExportError: its logits are all but zero, so that nothing could be held against them.
    """
    pairs = [(network(images), labels) for images, labels in batches]
    found = Answers(torch.cat([logits for logits, _ in pairs]), torch.cat([y for _, y in pairs]))
    if not found.logits.abs().max() > 1e-6:
        raise ExportError("the logits are all but zero; the network was not trained")
    return found


def compare(
    run: Callable[[Tensor], Tensor], batches: Iterable[Batch], expected: Answers
) -> Comparison:
    """Hold an exported network against its source.

    Args:
        run: images ``(N, C, H, W)`` to logits.
        batches: those that the source has answered to.
        expected: its answers.
    """
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
