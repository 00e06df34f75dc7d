from collections.abc import Mapping

import pytest

from octnas.nn.shapes import search_space
from octnas.space import SearchSpace


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    """7 sites of 3 choices."""
    return search_space(
        "thumbnail_resnet", (1, 16, 16), (0, 0.5, 1), backbone_args={"num_classes": 10}, fixed={}
    )


def loss_of(alphas: Mapping[str, float]) -> dict[str, float]:
    """A smooth score in which some sites hurt more than others."""
    weights = range(1, len(alphas) + 1)
    loss = 1 + sum(w * alphas[name] ** 2 for w, name in zip(weights, sorted(alphas), strict=True))
    return {"loss": loss, "top1": 1 / loss}
