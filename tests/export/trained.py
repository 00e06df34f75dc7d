"""A small network that was trained, as far as its logits go, with what a run would know of it."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from octnas.data.digits import DigitImages
from octnas.data.images import preparation
from octnas.data.settings import DigitsSettings
from octnas.export.source import Source
from octnas.nn import build
from octnas.nn.cost import cost
from octnas.results.networks import SEARCHED, Network, Retrained, SeedResult
from octnas.space.architecture import Architecture

ARCHITECTURE = Architecture(
    backbone="thumbnail_resnet",
    input_size=(1, 16, 16),
    alphas={"stem": 0.5, "layer1": 0.25, "layer2.0.conv1": 1.0, "layer3": 0.5},
    backbone_args={"in_chans": 1, "num_classes": 10},
    stride_mode="paper",
)
DATA = DigitsSettings(train_images=96, search_val_images=8, read_images=8, val_images=75)


def randomised(architecture: Architecture) -> nn.Module:
    """With batch norms as after training, so that logits are far from zero."""
    model = build(architecture, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if "bn" in name and value.dtype.is_floating_point:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model.eval()


def images() -> DigitImages:
    return DigitImages(DATA)


CLASSES = tuple(f"class {number}" for number in range(10))


def make_source(folder: Path, **known: str) -> Source:
    """The network above, its weights in a folder."""
    weights = folder / "weights.safetensors"
    save_file(randomised(ARCHITECTURE).state_dict(), weights)
    found = cost(ARCHITECTURE)
    network = Network(SEARCHED, "uniform α 0.5", ARCHITECTURE, found.cost)
    runs = tuple(
        SeedResult(seed, {"val_top1": 0.5 + seed / 10, "val_loss": 1.25, "seconds": 1.0}, ())
        for seed in (0, 1)
    )
    return Source(
        retrained=Retrained(network, runs),
        seed=0,
        weights=weights,
        class_names=CLASSES,
        preparation=preparation(DATA),
        data={"source": "digits", "digest": "0123", "classes": 10, "counts": {"val": 75}},
        vanilla_macs=found.vanilla_macs,
        **known,
    )
