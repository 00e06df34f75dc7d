"""The settings of retraining, without torch."""

from dataclasses import dataclass, field
from typing import Literal

from octnas.data.settings import AugmentSettings
from octnas.errors import require, require_seed, require_seeds
from octnas.settings import HOW, LATER, Executor
from octnas.training.settings import Recipe

Select = Literal["budgets", "front"]
Baseline = Literal[
    "uniform",
    "paper",
    "growing",
    "random",
    "worst",
    "narrower",
    "shallower",
    "smaller images",
    "vanilla",
]


@dataclass(frozen=True, kw_only=True)
class HalvingSettings:
    """Early stopping of networks of the front that others dominate, by ASHA (arXiv 1810.05934).

    A network is behind by how much its accuracy on the rank part lies below the best one of as few
    MACs at the same epoch; at each rung those that are farthest behind are stopped. Searched
    networks and baselines are never.

    Attributes:
        grace_epochs: before the first rung; every next one is ``reduction`` times as late.
        reduction: of those that are behind, one of so many goes on.
    """

    grace_epochs: int = 2
    reduction: float = 2.0

    def __post_init__(self) -> None:
        require(self.grace_epochs >= 1, "grace_epochs", self.grace_epochs, "1 or more")
        require(self.reduction > 1, "reduction", self.reduction, "above 1")


@dataclass(frozen=True, kw_only=True)
class RetrainSettings:
    """How the chosen networks and the baselines are trained from scratch.

    Attributes:
        select: what is trained: the chosen network of each of the ``budgets``, or the whole
            ``front`` up to the largest of them, too.
        seeds: one training of every network for each.
        baselines: what is trained beside the searched networks, none of fewer MACs than the
            searched one: ``uniform`` α; ``paper``, the same with stem and last stage at 0;
            ``growing`` with depth; ``random`` architectures inside the budget; the ``worst`` there
            by the supernet; plain networks, ``narrower``, ``shallower`` or for ``smaller images``;
            and once the ``vanilla`` network.
        randoms: how many random architectures of each budget; two tell little of how much such
            networks differ, three or more are better.
        seed: of their draws.
        test_sizes: sides of images, in pixels, at which trained networks are judged besides the
            size that they were trained at (Chen et al. 2019, Table 4).
        augment: of the training images, where retraining has its own; else that of ``data``.
        halving: of the networks of the front; null for none. Needs ``select: front`` and
            ``executor: ray``.
        threads: CPU threads of one training.
        workers: trainings at a time, each in a process of its own; 1 trains in this process.
        ranks: processes that train one network together, each on a GPU where there are any, with
            its share of every batch.
        executor: ``local``, or ``ray`` for trials of Ray Tune.
        recipe: the same for every network.
    """

    select: Select = field(default="budgets", metadata=LATER)
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: tuple[Baseline, ...] = ("uniform", "growing", "vanilla")
    randoms: int = field(default=2, metadata=LATER)
    seed: int = field(default=0, metadata=LATER)
    test_sizes: tuple[int, ...] = field(default=(), metadata=LATER)
    augment: AugmentSettings | None = field(default=None, metadata=LATER)
    halving: HalvingSettings | None = field(default=None, metadata=LATER)
    threads: int = 1
    workers: int = field(default=2, metadata=HOW)
    ranks: int = field(default=1, metadata=LATER)
    executor: Executor = field(default="local", metadata=HOW)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        require_seeds(self.seeds)
        require_seed("seed", self.seed)
        distinct = len(set(self.baselines)) == len(self.baselines)
        require(distinct, "baselines", self.baselines, "distinct baselines")
        sizes = (
            len(set(self.test_sizes)) == len(self.test_sizes)
            and min(self.test_sizes, default=1) > 0
        )
        require(sizes, "test_sizes", self.test_sizes, "distinct numbers of pixels")
        can = self.halving is None or (self.select, self.executor) == ("front", "ray")
        require(can, "halving", self.halving, "null, or with select: front and executor: ray")
        for key in ("threads", "workers", "ranks", "randoms"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
