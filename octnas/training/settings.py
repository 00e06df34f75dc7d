"""Settings of training and retraining, importable without torch."""

from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from octnas.data.settings import AugmentSettings
from octnas.errors import require, require_at_least, require_seed, require_seeds
from octnas.settings import HOW, LATER, Executor

Precision = Literal["none", "bf16"]
Sampling = Literal["by_macs", "uniform", "sandwich", "learnable"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained, with timm's optimizers and schedules.

    Attributes:
        epochs: passes over the training images, including warm-up.
        batch_size: images per step, over all processes.
        optimizer: a name known to ``timm.optim.create_optimizer_v2``.
        lr: peak learning rate.
        momentum: for optimizers that have one.
        weight_decay: on weights; biases and normalisation layers have none, as in timm.
        scheduler: a name known to ``timm.scheduler.create_scheduler_v2``, stepped per update.
        warmup_epochs: epochs of linear warm-up from zero; may be a fraction. If only ``epochs`` is
            given, at most a tenth of them.
        label_smoothing: share of the target spread over all classes; 0 for none.
        clip_grad: maximum gradient norm; 0 for no limit.
        amp: ``bf16`` runs layers in bfloat16 by torch's autocast; weights, loss and evaluation stay
            in float32.
        channels_last: whether to use the channels-last memory format.
        ema: decay per step of a moving average of the weights, such as 0.9999, which replaces them
            at the end; warmed up by timm's ``1 − (1 + step)^(−2/3)``; 0 for none.
        checkpoint_seconds: minimum seconds between checkpoints, from which an interrupted training
            resumes; 0 for one after every step.
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
        require_at_least(self, 1, "epochs")
        require_at_least(self, 2, "batch_size")
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
RETRAIN_RECIPE = Recipe(epochs=110, batch_size=256, weight_decay=1e-4, warmup_epochs=5.0)
RANKING_RECIPE = replace(RETRAIN_RECIPE, epochs=30)
SUPERNET_RECIPE = replace(RETRAIN_RECIPE, epochs=60, clip_grad=5.0)


# A tenth of the epochs at a tenth of the learning rate: the weights are trained already.
FINE_TUNE_RECIPE = replace(RETRAIN_RECIPE, epochs=11, lr=0.01, warmup_epochs=0.5)


@dataclass(frozen=True, kw_only=True)
class OriginalSettings:
    """Section ``original``: how a run trains the network that it then begins with.

    That is the network at α = 0, and all goes on as if ``space.weights`` named its weights. Without
    this section there is no such network but that of ``space.weights``; with ``space.weights``, the
    section is not used.

    Attributes:
        seed: of initialisation, data order and augmentation.
        threads: CPU threads; 0 for all cores, whose number then affects the last digits.
        processes: processes that train the network together, each on its own GPU if there are any,
            with an equal share of every batch.
        recipe: optimizer and schedule.
    """

    seed: int = 0
    threads: int = 0
    processes: int = 1
    recipe: Recipe = RETRAIN_RECIPE

    def __post_init__(self) -> None:
        require_seed("seed", self.seed)
        require_at_least(self, 0, "threads")
        require_at_least(self, 1, "processes")


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Section ``convert``: how the channels of the original are sorted.

    The original is the network of ``space.weights``, or the one that the run has trained first.

    In every site those that lose least at half resolution come last, which are the low ones. The
    network computes what it computed before.

    Attributes:
        criterion: what tells how much a channel loses: ``energy``, that of its high frequencies
            times the squares of the weights that read it; or ``taylor``, the first-order change of
            the loss, which needs labels.
        images: training images that it is measured on; 0 for all.
        batch_size: images at a time.
    """

    criterion: Literal["energy", "taylor"] = "energy"
    images: int = 1000
    batch_size: int = 64

    def __post_init__(self) -> None:
        require_at_least(self, 0, "images")
        require_at_least(self, 1, "batch_size")


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """How networks learn from the original, in runs that begin with one (arXiv 1503.02531).

    The loss is ``(1 − weight) · cross entropy + weight · temperature² · KL``, with the divergence
    of the softened probabilities from the original's.

    Attributes:
        weight: of the divergence, 0 to 1.
        temperature: that logits are divided by in the divergence.
    """

    weight: float = 0.7
    temperature: float = 2.0

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 1, "weight", self.weight, "0 to 1")
        temperature = self.temperature
        require(0 < temperature < inf, "temperature", temperature, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class LearnableSettings:
    """How distributions over α are learned, with ``sampling: learnable``.

    See `octnas.training.learnable`.

    Attributes:
        explore: share of the steps that train an architecture drawn by MACs instead of from a
            distribution, so that all choices are still evaluated fairly.
        warmup: share of the training in which only the weights learn.
        every: a budget's logits take one step after this many weight steps of that budget.
        batch_size: search_val images in a step of the logits.
        lr: initial learning rate of the logits, with Adam and cosine decay to zero.
        temperature: initial and final temperature of the Gumbel softmax.
        penalty: weight ρ of the squared relative deviation of the expected MACs from the budget.
        multiplier_lr: step size η with which the budget's multiplier λ follows that deviation.
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
        require_at_least(self, 1, "every")
        require_at_least(self, 2, "batch_size")
        for key in ("lr", "multiplier_lr"):
            require(0 < getattr(self, key) < inf, key, getattr(self, key), "a number above 0")
        require(0 <= self.penalty < inf, "penalty", self.penalty, "0 or more")
        positive = all(0 < value < inf for value in self.temperature)
        require(positive, "temperature", self.temperature, "two numbers above 0")


@dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """Section ``supernet``: how the supernet is trained.

    Attributes:
        sampling: architectures to train in a step. ``uniform`` draws each site's α uniformly;
            ``by_macs`` draws a cost uniformly, then one of the architectures of that cost;
            ``sandwich`` trains the largest, the smallest and ``samples`` architectures drawn by
            MACs (Yu and Huang, arXiv 1903.05134); ``learnable`` draws from a distribution per
            budget that is learned beside the weights.
        macs: range of MACs to draw from, as shares of the vanilla network's.
        samples: architectures drawn by MACs in a step of ``sandwich``.
        teacher: network whose output the others in a ``sandwich`` step learn: ``largest``, a number
            for the network of that uniform α, or ``none`` to learn the labels. ``original``: in
            every mode of sampling but ``learnable``, learn from the frozen network of ``weights``
            or ``space.weights``. ``auto`` is ``original`` with ``space.weights``, unless α is
            learned, and otherwise ``largest``.
        weights: initial weights: a file with timm's keys, ``timm`` for timm's pretrained weights
            (may be downloaded), or empty for none. Needs ``space.stride_mode: timm``.
        alpha_warmup: share of the steps over which the largest α rises from 0 to its maximum, which
            keeps pretrained weights from being lost at once.
        switchable: whether each channel has batch-norm parameters of its own as high and as low
            resolution, and each path of a convolution a learned scale; in the supernet only.
        threads: CPU threads; 0 for all cores, whose number then affects the last digits.
        processes: processes that train the supernet together, each on its own GPU if there are
            any.
        executor: ``local`` starts several processes with torch's elastic launcher, ``ray`` with
            Ray.
        restarts: how often the processes restart from their checkpoint after one has died.
        recipe: optimizer and schedule.
        learnable: settings of ``sampling: learnable``.
    """

    sampling: Sampling = "by_macs"
    macs: tuple[float, float] = (0.0, 1.0)
    samples: int = 2
    teacher: float | Literal["auto", "largest", "none", "original"] = "auto"
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
        require_at_least(self, 0, "samples")
        if not isinstance(self.teacher, str):
            allowed = "auto, largest, none, original or 0 to 1"
            require(0 <= self.teacher <= 1, "teacher", self.teacher, allowed)
        require(0 <= self.alpha_warmup < 1, "alpha_warmup", self.alpha_warmup, "0 to below 1")
        if self.sampling == "learnable":
            own = self.teacher != "original"
            require(own, "teacher", self.teacher, "any but original, with sampling: learnable")
            level = self.alpha_warmup == 0
            require(level, "alpha_warmup", self.alpha_warmup, "0 with sampling: learnable")
        require_at_least(self, 1, "processes")
        require_at_least(self, 0, "threads", "restarts")


@dataclass(frozen=True, kw_only=True)
class RankingSettings:
    """Section ``ranking``: how ``octnas rank`` checks that scores rank as trained networks do.

    The ground truth is a set of architectures that are trained from scratch, or fine-tuned from the
    network that the run begins with.

    Attributes:
        architectures: number of architectures, drawn before anything is trained.
        narrow: how many of them have nearly equal MACs, just below the middle budget; the others
            are spread over the MACs of the search space.
        narrow_width: width of that narrow range, as a share of the budget.
        seeds: each architecture is trained once per seed.
        seed: random seed of the draw of the architectures.
        threads: CPU threads of one training.
        recipe: optimizer and schedule of every training.
        resamples: resamples of the bootstrap intervals.
        workers: trainings that run at the same time, each in its own process.
        executor: ``local``, or ``ray`` for the processes of a Ray cluster.
        truth_from: run directory whose ground truth is shared, and extended if incomplete; it must
            have been made with the same settings. Empty for the run's own.
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
        require_at_least(self, 4, "architectures")
        most = self.architectures - 2
        require(0 <= self.narrow <= most, "narrow", self.narrow, f"0 to {most}")
        require(0 < self.narrow_width < 1, "narrow_width", self.narrow_width, "0 to 1")
        require_seeds(self.seeds)
        require_seed("seed", self.seed)
        require_at_least(self, 1, "threads", "workers", "resamples")


InitialWeights = Literal["auto", "original", "supernet", "scratch"]
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
    "pruned",
    "vanilla",
]


@dataclass(frozen=True, kw_only=True)
class HalvingSettings:
    """Early stopping of networks on the front that others dominate, by ASHA (arXiv 1810.05934).

    Networks are compared by how far their accuracy on the search_val images is below the best one
    with no more MACs at the same epoch. Each rung stops those that are farthest behind. Searched
    networks and baselines are never stopped.

    Attributes:
        grace_epochs: epochs before the first rung; each further rung is ``reduction`` times as
            late.
        reduction: a rung keeps one in this many of the networks that are behind.
    """

    grace_epochs: int = 2
    reduction: float = 2.0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "grace_epochs")
        require(self.reduction > 1, "reduction", self.reduction, "above 1")


@dataclass(frozen=True, kw_only=True)
class RetrainSettings:
    """Section ``retrain``: how the chosen networks and the baselines are trained.

    Attributes:
        weights: initial weights: ``original``, those of the trained network that the run begins
            with; ``supernet``, those of the trained supernet at the network's α; ``scratch``; or
            ``auto``, ``original`` if there is one. Except from scratch, an original also teaches
            all networks. Plain networks of other widths or depths begin from scratch, and are
            taught as well.
        fit_images: training images on which each convolution is fitted, by least squares, to what
            the original's computes, before fine-tuning from its weights; fewer where their feature
            maps take more than 1 GB. 0 for none.
        distillation: how networks learn from the original; null for labels alone.
        select: networks to train: ``budgets``, the chosen network of each budget, or ``front``, the
            whole front up to the largest of these.
        seeds: each network is trained once per seed.
        baselines: networks to compare with, each with at least as many MACs as the searched one, or
            as much of whatever the budget bounds: ``uniform`` α; ``paper``, uniform with stem and
            last stage at 0; ``increasing``, α increasing with depth; ``random`` architectures
            inside the budget; ``worst``, the worst by its score inside the budget; plain networks
            that are ``narrower``, ``shallower`` or for ``smaller images``; ``pruned``, the original
            with the same share of channels removed everywhere by Torch-Pruning (``pip install
            octnas[pruning]``); and the ``vanilla`` network, once for all budgets, which is the
            original fine-tuned as long if there is one.
        randoms: random architectures per budget; use three or more to estimate how much they
            differ.
        seed: random seed of their draw.
        test_sizes: further image sizes, in pixels, at which trained networks are evaluated (Chen et
            al. 2019, Table 4).
        augment: augmentation for retraining; null for that of ``data``.
        halving: early stopping of networks on the front; null for none. Needs ``select: front`` and
            ``executor: ray``.
        threads: CPU threads of one training.
        workers: trainings that run at the same time, each in its own process; 1 trains in the main
            process.
        processes: processes that train one network together, each on its own GPU if there are any,
            with an equal share of every batch.
        executor: ``local``, or ``ray`` for trials of Ray Tune.
        recipe: optimizer and schedule of every network.
    """

    weights: Literal["auto", "original", "supernet", "scratch"] = field(
        default="auto", metadata=LATER
    )
    fit_images: int = field(default=256, metadata=LATER)
    distillation: DistillationSettings | None = field(
        default=DistillationSettings(), metadata=LATER
    )
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
        require_at_least(self, 0, "fit_images")
        require_at_least(self, 1, "threads", "workers", "processes", "randoms")
