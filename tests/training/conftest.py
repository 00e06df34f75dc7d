import pytest

from octnas.data.digits import DigitImages
from octnas.nn.search_space import search_space
from octnas.space.search_space import SearchSpace
from tests.training.small import digits


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
