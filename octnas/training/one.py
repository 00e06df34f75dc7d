"""Training of one fixed architecture, and what is kept of it."""

from collections.abc import Callable, Mapping

import torch
from safetensors.torch import save
from torch import nn

from octnas.data.images import Data, Images, open_images
from octnas.device import choose_device, cpu_threads
from octnas.files import write_bytes, write_json
from octnas.looks import note_look
from octnas.nn.weights import save_weights
from octnas.results import SeedResult
from octnas.training.evaluate import judge
from octnas.training.fit import RESULT_FILE, WEIGHTS_FILE, Settings, Training, fit, images_for
from octnas.training.fit_together import fit_together

JUDGED_FILE = "judged.safetensors"

OnEpoch = Callable[[Training, Mapping[str, float]], None]


def train_one(
    training: Training,
    data: Data,
    settings: Settings,
    device: str,
    on_epoch: OnEpoch | None = None,
    watch: str = "",
) -> SeedResult:
    """Train one network and write its weights and result, going on if it was broken off.

    The result is written last: a folder with a result is complete.

    Args:
        training: what to train.
        data: on which.
        settings: recipe, threads and, for retraining, the processes of one training.
        device: name of the device.
        on_epoch: called after every epoch.
        watch: see `octnas.training.fit.fit`.
    """
    place, ranks = choose_device(device), getattr(settings, "ranks", 1)
    images = images_for(training, data, settings, place)

    def log(row: Mapping[str, float]) -> None:
        if on_epoch is not None:
            on_epoch(training, row)

    if ranks > 1:
        model, history = fit_together(
            training, data, settings, device, log, ranks=ranks, watch=watch
        )
    else:
        model, history = fit(training, images, settings, place, log, watch=watch)
    with cpu_threads(settings.threads):
        metrics = _judge(model, training, images, data, settings, place)
    metrics["seconds"] = history[-1]["seconds"]
    save_weights(model, training.folder / WEIGHTS_FILE)
    result = SeedResult(training.seed, metrics, history)
    write_json(training.folder / RESULT_FILE, result.to_dict())
    training.checkpoints().remove()
    return result


def _judge(
    model: nn.Module,
    training: Training,
    images: Images,
    data: Data,
    settings: Settings,
    device: torch.device,
) -> dict[str, float]:
    """Metrics on the training's part of the data, also of larger or smaller images.

    What the network makes of every image is written beside its weights.
    """
    part, batch_size = training.part, settings.recipe.batch_size * 4
    architecture, looks = training.architecture, training.looks
    if looks is not None:
        note_look(looks, architecture, training.seed, architecture.input_size[-1], "retrain")
    judged = judge(model, images.batches(part, batch_size), device)
    write_bytes(training.folder / JUDGED_FILE, save(judged.to_tensors()))
    metrics = {f"{part}_{name}": value for name, value in judged.metrics.items()}
    for size in getattr(settings, "test_sizes", ()):
        if looks is not None:
            note_look(looks, architecture, training.seed, size, "retrain")
        shape = (architecture.input_size[0], size, size)
        other = judge(model, open_images(data, shape, device).batches(part, batch_size), device)
        metrics[f"{part}_top1@{size}"] = other.metrics["top1"]
    return metrics
