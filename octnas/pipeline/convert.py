"""Stage 3 of a run that begins with a trained network: its channels are sorted."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from octnas.data.images import open_images
from octnas.device import choose_device, cpu_threads, device_errors
from octnas.errors import ArchitectureError, ConfigError, OctnasError
from octnas.io.files import write_json
from octnas.nn.backbone import create_backbone
from octnas.nn.channel_order import kept_sites, sensitivity, sort_channels
from octnas.nn.supernet import build_original
from octnas.nn.weights import load_weights, save_weights
from octnas.pipeline.original import trained_weights
from octnas.pipeline.records import class_names
from octnas.pipeline.run import Run
from octnas.pipeline.space import check_classes
from octnas.runtime.directory import CONVERT
from octnas.training.loop import check_recipe
from octnas.training.scoring import evaluate

SCHEMA = 1
WEIGHTS_FILE = "weights.safetensors"
CHANNELS_FILE = "channels.json"
# Of logits, relative to their spread. Permuted sums differ in the last bits of float32.
_SAME = 1e-3


def sorted_weights(run: Run) -> Path:
    """The original's weights with sorted channels, a state dict with timm's keys."""
    return (run.directory.stage(CONVERT) / WEIGHTS_FILE).resolve()


def _source(run: Run) -> str:
    """The setting that the original comes from, and its value where it has one."""
    if run.config.trains_original:
        return "original"
    return f"space.weights: {run.config.space.weights}"


def convert(run: Run) -> None:
    """Sort the channels of the original, and write its weights and the order of its channels.

    Raises:
        ConfigError: the weights are missing or of another network, lack a part, or are not finite;
            or the network computes something else once its channels are sorted.
    """
    settings, device = run.config.convert, choose_device(run.config.device)
    images = open_images(run.data, run.space.input_size, device)
    check_classes(run, len(images.classes))
    with run.settings_of("retrain", "recipe"):
        # Now, since retraining comes later.
        check_recipe(run.config.retrain.recipe, images.count("train"))
    model, most = _original(run), settings.images or images.count("train")
    batches = iter(images.batches("train", settings.batch_size, most))
    first = next(batches)
    shown = first[0].cpu()
    before = _logits(model, shown)
    with cpu_threads(run.config.supernet.threads), device_errors():
        every = chain([first], batches)
        moved = ((pixels.to(device), labels.to(device)) for pixels, labels in every)
        try:
            found = sensitivity(model.to(device), moved, settings.criterion)
        except OctnasError as error:
            raise ConfigError(f"{_source(run)}: {error}") from None
        orders = sort_channels(model.cpu(), found)
        # On the CPU, whose convolutions are exact to float32.
        off = (_logits(model, shown) - before).abs().max() / before.std()
    if not off <= _SAME:
        raise ConfigError(
            f"{_source(run)}: sorting the channels of {run.space.backbone} changes its outputs by "
            f"{float(off):.2g} of their standard deviation; begin without a trained network"
        )
    folder, kept = run.directory.stage(CONVERT), kept_sites(model)
    save_weights(model, folder / WEIGHTS_FILE)
    document = {
        "schema": SCHEMA,
        "criterion": settings.criterion,
        "images": min(most, images.count("train")),
        "kept": kept,
        "orders": {site: order.tolist() for site, order in orders.items()},
    }
    write_json(folder / CHANNELS_FILE, document)
    accuracy = evaluate(model.to(device), images.batches("read", 4 * settings.batch_size), device)
    run.progress.say(
        f"convert: sorted the channels of {len(orders) - len(kept)} of {len(orders)} sites, by "
        f"{settings.criterion}; the original has {accuracy.metrics['top1']:.1%} top-1 on read"
    )


def _original(run: Run) -> nn.Module:
    """The original as timm builds it, with all weights."""
    space = run.space
    model = create_backbone(space.backbone, space.backbone_args)
    if run.config.trains_original:
        load_weights(model, trained_weights(run))
        return model.eval()
    try:
        with run.settings_of("space"):
            state = build_original(space, run.config.space.weights).state_dict()
    except ArchitectureError as error:
        raise ConfigError(f"space.weights: {error}") from None
    model.load_state_dict(state)
    if names := run.config.space.classes:
        _reorder_classes(model, names, class_names(run))
    return model.eval()


@torch.no_grad()
def _reorder_classes(model: nn.Module, own: Sequence[str], wanted: Sequence[str]) -> None:
    """Bring the logits into the order of the data's classes, by name."""
    if {*own} != {*wanted}:
        other = sorted({*own} ^ {*wanted})
        raise ConfigError(
            f"space.classes: found {len(own):,} names, allowed: those of the data's "
            f"{len(wanted):,} classes, {'without' if other[0] in own else 'with'} {other[0]!r}"
        )
    order = [own.index(name) for name in wanted]
    for value in model.get_classifier().parameters():  # type: ignore[operator]
        value.copy_(value[order])


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits.float()
