import pytest
import torch
from torch import Tensor, nn

from octnas.errors import ExportError
from octnas.export.check import Comparison, answers, compare
from octnas.export.settings import Tolerance

LOGITS = torch.tensor([[4.0, 0.0], [0.0, 2.0], [1.0, 0.5]])
BATCHES = [(LOGITS[:2], torch.tensor([0, 0])), (LOGITS[2:], torch.tensor([0]))]


def test_predictions_of_the_source() -> None:
    found = answers(nn.Identity(), BATCHES)
    assert torch.equal(found.logits, LOGITS)
    assert found.top1 == pytest.approx(2 / 3)


def test_differences_are_relative_to_the_largest_logit_of_each_image() -> None:
    changes = iter(torch.tensor([[[0.4, 0.0], [0.0, -0.5]], [[0.0, 1.0], [0.0, 0.0]]]))

    def run(images: Tensor) -> Tensor:
        return images + next(changes)[: len(images)]

    found = compare(run, BATCHES, answers(nn.Identity(), BATCHES))
    # 0.4 of 4, 0.5 of 2, and 1 of 1, which also changes that image's answer.
    assert found == Comparison(3, 1.0, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert compare(lambda x: x, BATCHES, answers(nn.Identity(), BATCHES)).difference == 0


def test_logits_that_are_all_but_zero_are_refused() -> None:
    with pytest.raises(ExportError, match="all but zero"):
        answers(nn.Identity(), [(LOGITS * 1e-9, torch.tensor([0, 0, 0]))])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Comparison(100, 0.1, 0.9, 0.5), ""),
        (Comparison(100, 0.11, 0.9, 0.5), "logits differ by 0.11 of an image's largest"),
        (Comparison(100, float("nan"), 0.9, 0.5), "logits differ by nan"),
        (
            Comparison(100, 0.1, 0.89, 0.5),
            "89.00% of 100 predictions agree with the source's, allowed: 90",
        ),
    ],
)
def test_refusals(found: Comparison, words: str) -> None:
    reason = found.refusal(Tolerance(0.1, 0.9))
    assert words in reason
    assert bool(reason) == bool(words)
