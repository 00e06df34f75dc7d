"""Training of the weight-sharing supernet."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from octnas.costs import Budget
from octnas.data.images import Images
from octnas.device import cpu_threads
from octnas.distribution import Probabilities
from octnas.errors import require
from octnas.nn.supernet import build, build_supernet
from octnas.space import SearchSpace
from octnas.training.checkpoint import Checkpoints, Stateful
from octnas.training.learnable import LearnableSteps
from octnas.training.loop import Log, train
from octnas.training.ranks import ALONE, Ranks
from octnas.training.sampled import Teacher, architecture_draw, sampling_steps
from octnas.training.settings import SupernetSettings
from octnas.training.step import Step


def train_supernet(
    space: SearchSpace,
    images: Images,
    settings: SupernetSettings,
    *,
    seed: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
    on_step: Callable[[int], None] | None = None,
    budgets: Sequence[Budget] = (),
    on_learned: Callable[[Mapping[str, Probabilities]], None] | None = None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train a fresh supernet of a search space.

    Args:
        space: what is sampled from.
        images: trained on their training part.
        settings: sampling and recipe.
        seed: of initialisation, data order and sampling.
        device: where to train.
        ranks: this process among those that train together; each trains architectures of its own
            on its share of every batch, of the same MACs where those are drawn first.
        checkpoints: from which the training goes on if it was broken off.
        log: called after every epoch.
        on_step: called with the number of every step, for progress.
        budgets: with ``sampling: learnable``, for each of which a distribution is learned.
        on_learned: called at the end with their probabilities, by the budgets' names.

    Returns:
        The supernet, on ``device``, and its history per epoch.

    Raises:
        SettingError: see `check_supernet`.
    """
    _check_sites(space, settings)
    supernet = build_supernet(space, seed=seed, by_role=settings.by_role, weights=settings.weights)
    batches = images.train_batches(settings.recipe.batch_size, seed, ranks.part)
    learned, total = None, settings.recipe.epochs * len(batches)
    if settings.sampling == "learnable":
        learned = LearnableSteps(
            supernet,
            space,
            budgets,
            images,
            settings.learnable,
            explore=architecture_draw(space, settings, seed, ranks.part.rank),
            seed=seed,
            steps=total,
        )
    steps = learned or sampling_steps(
        supernet,
        space,
        settings,
        seed=seed,
        steps=total,
        original=_original(space, settings, device),
        rank=ranks.part.rank,
    )

    def backward(step: Step) -> Tensor:
        if on_step is not None:
            on_step(step.number)
        return steps(step)

    with cpu_threads(settings.threads):
        history = train(
            supernet,
            batches,
            settings.recipe,
            device=device,
            seed=seed,
            ranks=ranks,
            backward=backward,
            state=steps if isinstance(steps, Stateful) else None,
            checkpoints=checkpoints,
            log=log,
        )
    if learned is not None and on_learned is not None:
        on_learned(learned.probabilities)
    return supernet, history


def check_supernet(space: SearchSpace, settings: SupernetSettings) -> None:
    """Refuse settings that no training can begin with, for who starts processes that would.

    Args:
        space: what is sampled from.
        settings: sampling, teacher and weights.

    Raises:
        SettingError: no architecture lies in the range of MACs that is to be sampled, the weights
            to begin with cannot be had or cannot teach, or there is nothing to learn.
    """
    _check_sites(space, settings)
    architecture_draw(space, settings, seed=0)
    if settings.weights:
        build_supernet(space, seed=0, by_role=settings.by_role, weights=settings.weights)
    _original(space, settings, torch.device("cpu"))


def _check_sites(space: SearchSpace, settings: SupernetSettings) -> None:
    learns = settings.sampling == "learnable"
    allowed = "another one: no site of this search space has two choices"
    require(not learns or bool(space.searchable), "sampling", settings.sampling, allowed)


def _original(
    space: SearchSpace, settings: SupernetSettings, device: torch.device
) -> Teacher | None:
    """The network that the supernet begins with, as it was, if it is to teach.

    Raises:
        SettingError: its classifier is not that of the weights but a new one.
    """
    if settings.teacher != "original":
        return None
    vanilla = space.architecture({site.name: 0.0 for site in space.sites})
    network, other = (build(vanilla, seed=seed, weights=settings.weights) for seed in (0, 1))
    pairs = zip(network.state_dict().items(), other.state_dict().values(), strict=True)
    new = ", ".join(name for (name, value), again in pairs if not torch.equal(value, again))
    allowed = f"original only with weights for all of the network; the file has no {new}"
    require(not new, "teacher", settings.teacher, allowed)
    network.to(device).eval().requires_grad_(False)

    def teach(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = network(images)
        return logits.float()

    return teach
