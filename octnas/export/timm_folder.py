"""A folder that timm loads: config, weights and architecture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from octnas.errors import ExportError
from octnas.export.check import check_trained
from octnas.export.source import Exported, Loaded
from octnas.nn.backbone import create_backbone, pretrained_cfg
from octnas.nn.load import ARCHITECTURE_FILE, WEIGHTS_FILE, load
from octnas.nn.weights import load_weights
from octnas.space.architecture import Architecture


def export_timm(loaded: Loaded, precision: str, folder: Path) -> Exported:  # noqa: ARG001
    """Write a network as a folder for timm, see `write_timm`."""
    source = loaded.source
    write_timm(
        source.network.architecture,
        source.weights,
        folder,
        class_names=source.class_names,
        data_config=source.preparation,
    )
    network = _load_with_timm(folder)

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        return logits

    return Exported((WEIGHTS_FILE, "config.json", ARCHITECTURE_FILE), run, None)


@torch.inference_mode()
def write_timm(
    architecture: Architecture,
    weights: Path,
    folder: Path,
    *,
    class_names: Sequence[str],
    data_config: Mapping[str, Any],
) -> None:
    """Write a network as a folder for ``timm.create_model("local-dir:…", pretrained=True)``.

    It loads after ``import octnas.nn``, and with `octnas.load`. Both are checked on random images.

    Args:
        architecture: of the network.
        weights: a safetensors file with its state dict.
        folder: gets ``config.json``, ``model.safetensors`` and ``architecture.json``.
        class_names: in the order of the logits; timm's ``label_names``.
        data_config: how images are prepared: ``mean``, ``std``, ``crop_pct``, ``interpolation``.

    Raises:
        ExportError: the folder loads as a network with other logits, or was never trained.
    """
    backbone = create_backbone(architecture.backbone, architecture.backbone_args, meta=True)
    stated = pretrained_cfg(backbone)
    config = {
        "input_size": architecture.input_size,
        "num_classes": len(class_names),
        "first_conv": stated.get("first_conv", "conv1"),
        "classifier": stated.get("classifier", "fc"),
        **data_config,
    }
    source = timm.create_model(
        "octnas_network", architecture=architecture.to_dict(), pretrained_cfg=config
    )
    load_weights(source, weights)
    names = {"label_names": list(class_names)}
    save_for_hf(source, str(folder), model_config=names, safe_serialization=True)
    # timm makes the weights readable for their owner only.
    (folder / WEIGHTS_FILE).chmod((folder / "config.json").stat().st_mode)
    architecture.save(folder / ARCHITECTURE_FILE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, *architecture.input_size), generator=generator)
    expected = source.eval()(images)
    check_trained(expected)
    for loader, network in (("timm", _load_with_timm(folder)), ("octnas.load", load(folder))):
        if not torch.equal(network(images), expected):
            raise ExportError(f"{folder}: loaded with {loader}, the logits differ from the source")


def _load_with_timm(folder: Path) -> nn.Module:
    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network.eval()
