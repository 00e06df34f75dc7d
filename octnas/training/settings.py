"""The settings of training, without torch, so that a config is checked in no time.

The settings of retraining, without torch.
"""

from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from octnas.data.settings import AugmentSettings
from octnas.errors import require, require_seed, require_seeds
from octnas.settings import HOW, LATER, Executor

Precision = Literal["none", "bf16"]
Sampling = Literal["by_macs", "uniform", "sandwich", "learnable"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: timm's optimizers and schedules.

    Attributes:
        epochs: passes over the training part, warm-up included.
        batch_size: images per step.
        optimizer: a name that ``timm.optim.create_optimizer_v2`` knows.
        lr: peak learning rate.
        momentum: of optimizers that have one.
        weight_decay: on weights; not on biases and normalisation, as timm has it.
        scheduler: a name that ``timm.scheduler.create_scheduler_v2`` knows, stepped per update.
        warmup_epochs: of linear warm-up from zero; may be a fraction.
        label_smoothing: 0 for none.
        clip_grad: largest norm of the gradient; 0 for no limit.
        amp: ``bf16`` computes the network's layers in bfloat16 where torch's autocast does so;
            weights, loss and evaluation stay in float32.
        channels_last: whether images and weights lie in memory with channels last.
        ema: decay per step of a moving average of all weights, such as 0.9999, that takes their
            place at the end; warmed up by timm's ``1 − (1 + step)^(−2/3)``; 0 for none.
        checkpoint_seconds: least time between two checkpoints, from which a training goes on that
            was broken off; 0 for one after every step.
    """

    epochs: int = 8
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    scheduler: str = "cosine"
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    clip_grad: float = 0.0
    amp: Precision = "none"
    channels_last: bool = False
    ema: float = 0.0
    checkpoint_seconds: float = field(default=60.0, metadata=HOW)

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        require(0 < self.lr < inf, "lr", self.lr, "a number above 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "0 to below 1")
        require(0 <= self.weight_decay < inf, "weight_decay", self.weight_decay, "0 or more")
        require(
            0 <= self.warmup_epochs < self.epochs,
            "warmup_epochs",
            self.warmup_epochs,
            f"0 to below epochs ({self.epochs})",
        )
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 to 1")
        require(0 <= self.clip_grad < inf, "clip_grad", self.clip_grad, "0 or more")
        require(0 <= self.ema < 1, "ema", self.ema, "0 to below 1")
        seconds = self.checkpoint_seconds
        require(0 <= seconds < inf, "checkpoint_seconds", seconds, "0 or more")


# The paper's for a batch of 256 (arXiv 1904.05049, §4.1).
RETRAIN_RECIPE = Recipe(epochs=110, batch_size=256, weight_decay=1e-4, warmup_epochs=5)
RANKING_RECIPE = replace(RETRAIN_RECIPE, epochs=30)
SUPERNET_RECIPE = replace(RETRAIN_RECIPE, epochs=60, clip_grad=5.0)


@dataclass(frozen=True, kw_only=True)
class LearnableSettings:
    """How distributions over α are learned beside the weights, see `octnas.training.learnable`.

    Attributes:
        explore: share of the steps that train the weights on an architecture by MACs instead of
            one from a distribution, so that all choices go on being judged fairly.
        warmup: share of the training in which the weights learn alone.
        every: of so many steps of a budget, one is followed by a step of its logits.
        batch_size: images of search_val in such a step.
        lr: of the logits at first, by Adam; down to zero along a cosine.
        temperature: of the Gumbel softmax, at first and at the end.
        penalty: ρ, on the square of how far the expected MACs are from the budget, as a share.
        multiplier_lr: η, by which the price λ of the budget follows that share.
    """

    explore: float = 0.5
    warmup: float = 0.25
    every: int = 1
    batch_size: int = 64
    lr: float = 0.1
    temperature: tuple[float, float] = (2.0, 0.5)
    penalty: float = 20.0
    multiplier_lr: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.explore <= 1, "explore", self.explore, "0 to 1")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "0 to below 1")
        require(self.every >= 1, "every", self.every, "1 or more")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more")
        for key in ("lr", "multiplier_lr"):
            require(0 < getattr(self, key) < inf, key, getattr(self, key), "a number above 0")
        require(0 <= self.penalty < inf, "penalty", self.penalty, "0 or more")
        positive = all(0 < value < inf for value in self.temperature)
        require(positive, "temperature", self.temperature, "two numbers above 0")


@dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """How the supernet is trained.

    Attributes:
        sampling: which architectures a step trains. ``uniform`` draws every site's α evenly;
            ``by_macs`` draws a cost evenly, then one of the architectures of that cost;
            ``sandwich`` trains the largest, the smallest and ``samples`` of those by MACs at every
            step (Yu and Huang, arXiv 1903.05134); ``learnable`` draws from a distribution for
            each budget that is learned beside the weights.
        macs: the range of what is drawn by MACs, as shares of the vanilla network's MACs.
        samples: architectures by MACs in a step of ``sandwich``.
        teacher: whose output the others of a ``sandwich`` step learn from: ``largest``, a number
            for the architecture of that uniform α, or ``none`` for the labels. ``original``: all
            of any step's architectures learn from the frozen network of ``weights``.
        weights: what the supernet begins with: a file of weights in timm's keys, ``timm`` for
            timm's own (which may be downloaded), or empty for none. Needs
            ``space.stride_mode: timm``.
        alpha_warmup: share of the steps over which the largest α rises from 0 to its choices'
            largest, so that pretrained weights are not lost at once.
        switchable: batch-norm values by a channel's use as high or low, and a learned scale on each
            path of a convolution; in the supernet only.
        threads: CPU threads; 0 for all cores, whose number then decides the last digits.
        processes: that train the supernet together, each on a GPU of its own if there are any.
        executor: of several processes: ``local`` under torch's elastic launcher, or ``ray``.
        restarts: how often they begin again from their checkpoint after one has died.
        recipe: optimizer and schedule.
        learnable: of the sampling of that name.
    """

    sampling: Sampling = "by_macs"
    macs: tuple[float, float] = (0.0, 1.0)
    samples: int = 2
    teacher: float | Literal["largest", "none", "original"] = "largest"
    weights: str = ""
    alpha_warmup: float = 0.0
    switchable: bool = True
    threads: int = 0
    processes: int = field(default=1, metadata=HOW)
    executor: Executor = field(default="local", metadata=HOW)
    restarts: int = field(default=3, metadata=HOW)
    recipe: Recipe = SUPERNET_RECIPE
    learnable: LearnableSettings = field(default_factory=LearnableSettings)

    def __post_init__(self) -> None:
        low, high = self.macs
        require(0 <= low < high <= 1, "macs", self.macs, "two shares from 0 to 1, ascending")
        require(self.samples >= 0, "samples", self.samples, "0 or more")
        if not isinstance(self.teacher, str):
            allowed = "largest, none, original or 0 to 1"
            require(0 <= self.teacher <= 1, "teacher", self.teacher, allowed)
        known = self.teacher != "original" or bool(self.weights)
        require(known, "teacher", self.teacher, "original only with weights")
        require(0 <= self.alpha_warmup < 1, "alpha_warmup", self.alpha_warmup, "0 to below 1")
        if self.sampling == "learnable":
            own = self.teacher != "original"
            require(own, "teacher", self.teacher, "any but original, with sampling: learnable")
            level = self.alpha_warmup == 0
            require(level, "alpha_warmup", self.alpha_warmup, "0 with sampling: learnable")
        require(self.processes >= 1, "processes", self.processes, "1 or more")
        for key in ("threads", "restarts"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")


@dataclass(frozen=True, kw_only=True)
class RankingSettings:
    """How it is found out whether the supernet ranks: a ground truth of stand-alone trainings.

    Attributes:
        architectures: how many are trained from scratch, drawn before anything is trained.
        narrow: so many of them have nearly equal MACs, just below the middle budget; the others
            are spread over the MACs of the search space.
        narrow_width: share of the budget within which the MACs of those lie.
        seeds: one training of every architecture for each.
        seed: of the draws of the architectures.
        resamples: of the bootstrap intervals.
        threads: CPU threads of one training.
        workers: trainings at a time, each in a process of its own.
        executor: ``local``, or ``ray`` for the processes of a Ray cluster.
        truth_from: another run directory whose ground truth and short trainings from scratch are
            used (and made, if they are missing), where it was made with the same settings; empty
            for the run's own.
        recipe: of every training.
    """

    architectures: int = 36
    narrow: int = 12
    narrow_width: float = 0.03
    seeds: tuple[int, ...] = (0, 1, 2)
    seed: int = 0
    threads: int = 1
    recipe: Recipe = RANKING_RECIPE
    resamples: int = field(default=1000, metadata=HOW)
    workers: int = field(default=2, metadata=HOW)
    executor: Executor = field(default="local", metadata=HOW)
    truth_from: str = field(default="", metadata=HOW)

    def __post_init__(self) -> None:
        require(self.architectures >= 4, "architectures", self.architectures, "4 or more")
        most = self.architectures - 2
        require(0 <= self.narrow <= most, "narrow", self.narrow, f"0 to {most}")
        require(0 < self.narrow_width < 1, "narrow_width", self.narrow_width, "0 to 1")
        require_seeds(self.seeds)
        require_seed("seed", self.seed)
        for key in ("threads", "workers", "resamples"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")


Select = Literal["budgets", "front"]
Baseline = Literal[
    "uniform",
    "paper",
    "increasing",
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

    A network is behind by how much its accuracy on search_val lies below the best one of as few
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
            ``increasing`` with depth; ``random`` architectures inside the budget; the ``worst``
            there by the supernet; plain networks, ``narrower``, ``shallower`` or for ``smaller
            images``; and once the ``vanilla`` network.
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
        processes: that train one network together, each on a GPU of its own if there are any,
            with its share of every batch.
        executor: ``local``, or ``ray`` for trials of Ray Tune.
        recipe: the same for every network.
    """

    select: Select = field(default="budgets", metadata=LATER)
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: tuple[Baseline, ...] = ("uniform", "increasing", "vanilla")
    randoms: int = field(default=2, metadata=LATER)
    seed: int = field(default=0, metadata=LATER)
    test_sizes: tuple[int, ...] = field(default=(), metadata=LATER)
    augment: AugmentSettings | None = field(default=None, metadata=LATER)
    halving: HalvingSettings | None = field(default=None, metadata=LATER)
    threads: int = 1
    workers: int = field(default=2, metadata=HOW)
    processes: int = field(default=1, metadata=LATER)
    executor: Executor = field(default="local", metadata=HOW)
    recipe: Recipe = RETRAIN_RECIPE

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
        for key in ("threads", "workers", "processes", "randoms"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
