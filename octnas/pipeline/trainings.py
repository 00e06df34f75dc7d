"""Many stand-alone trainings, in processes of this machine or by Ray's workers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from octnas.data.images import open_images
from octnas.device import choose_device
from octnas.errors import RunDirectoryError
from octnas.pipeline.run import Run
from octnas.pipeline.supernet import check_classes
from octnas.results.networks import SeedResult
from octnas.training.loop import check_recipe
from octnas.training.standalone import OnEpoch, Settings, Training, train_all, train_one

Train = Callable[[Run, Sequence[Training], Settings, OnEpoch], Iterable[object]]
"""Trains what is not on disk yet; what it yields does not matter."""


def train_several(
    run: Run,
    trainings: Sequence[Training],
    settings: Settings,
    section: str,
    title: str,
    on_epoch: OnEpoch | None = None,
    train: Train | None = None,
) -> None:
    """Train what is not on disk yet, with a bar that counts epochs.

    Args:
        run: with the data and the device.
        trainings: what to train, and where the results go.
        settings: recipe, processes and executor.
        section: of the experiment file that holds them.
        title: of the bar.
        on_epoch: called after every epoch of any training, too.
        train: how, if not as the executor of the settings says.

    Raises:
        ConfigError: a recipe that timm does not know, or something that does not fit the data.
    """
    images = open_images(run.data, run.space.input_size)
    check_classes(run, len(images.classes))
    with run.settings_of(section, "recipe"):
        check_recipe(settings.recipe, images.count("train"))
    with run.settings_of():
        choose_device(run.config.device)
    with run.progress.bar(title, len(trainings) * settings.recipe.epochs) as bar:

        def tell(training: Training, row: Mapping[str, float]) -> None:
            bar.advance(note=f"{training.architecture.id}, loss {row['train_loss']:.3f}")
            if on_epoch is not None:
                on_epoch(training, row)

        todo = []
        for training in trainings:
            if training.result is None:
                todo.append(training)
            else:
                # Of a process that was killed behind the result.
                training.checkpoints().remove()
        bar.advance(settings.recipe.epochs * (len(trainings) - len(todo)))
        train = train or (_with_ray if settings.executor == "ray" else _in_processes)
        for _ in train(run, todo, settings, tell) if todo else ():
            pass


def _in_processes(
    run: Run, todo: Sequence[Training], settings: Settings, on_epoch: OnEpoch
) -> Iterator[tuple[Training, SeedResult]]:
    return train_all(todo, run.data, settings, run.config.device, on_epoch)


def _with_ray(
    run: Run, todo: Sequence[Training], settings: Settings, on_epoch: OnEpoch
) -> Iterator[tuple[Training, SeedResult]]:
    """Epochs are told when a training is finished."""
    from octnas.cluster.signals import forwarding_signals
    from octnas.cluster.start import ray_cluster
    from octnas.cluster.tasks import run_tasks

    train = partial(train_one, data=run.data, settings=settings, device=run.config.device)
    workers, ray = settings.workers, run.config.ray
    with ray_cluster(workers, ray), forwarding_signals(run.directory.path) as stops:
        found = run_tasks(stops.reach(train), todo, workers=workers, gpus=ray.gpus)
        for training, result in found:
            for row in result.history:
                on_epoch(training, row)
            yield training, result


def finished(training: Training) -> SeedResult:
    """The result of a training that has to be on disk.

    Raises:
        RunDirectoryError: it is not.
    """
    if (result := training.result) is None:
        raise RunDirectoryError(
            f"{training.folder}: this training is missing; redo its stage with --fresh in the run "
            "directory that it belongs to"
        )
    return result
