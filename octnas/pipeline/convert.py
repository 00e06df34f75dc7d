"""Stage 3 of a run that begins with a trained network: its channels are sorted."""

from pathlib import Path

import torch
from torch import Tensor, nn

from octnas.data.images import open_images
from octnas.device import choose_device, cpu_threads
from octnas.errors import ArchitectureError, ConfigError, OctnasError
from octnas.io.files import write_json
from octnas.nn.backbone import create_backbone
from octnas.nn.channel_order import kept_sites, sensitivity, sort_channels
from octnas.nn.supernet import build_original
from octnas.nn.weights import save_weights
from octnas.pipeline.run import Run
from octnas.runtime.directory import CONVERT

SCHEMA = 1
WEIGHTS_FILE = "weights.safetensors"
CHANNELS_FILE = "channels.json"
# Of logits, relative to their spread. Permuted sums differ in the last bits of float32.
_SAME = 1e-3


def sorted_weights(run: Run) -> Path:
    """The original's weights with sorted channels, a state dict with timm's keys."""
    return (run.directory.stage(CONVERT) / WEIGHTS_FILE).resolve()


def convert(run: Run) -> None:
    """Sort the channels of the original, and write its weights and the order of its channels.

    Raises:
        ConfigError: the weights are missing or of another network, lack a part, or are not finite;
            or the network computes something else once its channels are sorted.
    """
    settings, device = run.config.convert, choose_device(run.config.device)
    model = _original(run)
    images = open_images(run.data, run.space.input_size, device)
    most = settings.images or images.count("train")
    batches = [*images.batches("train", settings.batch_size, most)]
    with cpu_threads(run.config.supernet.threads):
        model.to(device)
        before = _logits(model, batches[0][0])
        try:
            orders = sort_channels(model, sensitivity(model, batches, settings.criterion))
        except OctnasError as error:
            raise ConfigError(f"space.weights: {run.config.space.weights}: {error}") from None
        off = (_logits(model, batches[0][0]) - before).abs().max() / before.std()
    if not off <= _SAME:
        raise ConfigError(
            f"space.weights: sorting the channels of {run.space.backbone} changes its outputs by "
            f"{float(off):.2g} of their standard deviation; leave space.weights empty"
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
    moved = f"{len(orders) - len(kept)} of {len(orders)} sites"
    run.progress.say(f"convert: sorted the channels of {moved}, by {settings.criterion}")


def _original(run: Run) -> nn.Module:
    """The original as timm builds it, with all weights."""
    space, weights = run.space, run.config.space.weights
    try:
        with run.settings_of("space"):
            state = build_original(space, weights).state_dict()
    except ArchitectureError as error:
        raise ConfigError(f"space.weights: {error}") from None
    model = create_backbone(space.backbone, space.backbone_args)
    model.load_state_dict(state)
    return model.eval()


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits.float()
