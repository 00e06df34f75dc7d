import pytest
from torch import nn

from octnas.data.digits import DigitImages
from octnas.nn.shapes import search_space
from octnas.space import SearchSpace
from octnas.training.supernet import train_supernet
from tests.training.resuming import CPU
from tests.training.small import SHORT_SUPERNET, digits


@pytest.fixture(scope="session")
def digit_space() -> SearchSpace:
    """A narrow network on digits: 7 sites of 3 choices."""
    args = {"num_classes": 10, "channels": [4, 8, 8]}
    return search_space(
        "thumbnail_resnet",
        (1, 16, 16),
        (0, 0.5, 1),
        backbone_args=args,
        fixed={},
        stride_mode="paper",
    )


@pytest.fixture(scope="session")
def few_digits() -> DigitImages:
    return DigitImages(digits(320, 60, 60, 80))


@pytest.fixture(scope="session")
def trained(digit_space: SearchSpace, few_digits: DigitImages) -> nn.Module:
    """A supernet; a test that changes it makes a copy first."""
    return train_supernet(digit_space, few_digits, SHORT_SUPERNET, seed=0, device=CPU)[0]
