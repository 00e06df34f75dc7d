"""A trained network that is to be exported, and what is known of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octnas.data.batches import Batches
from octnas.nn.deploy import deploy
from octnas.nn.supernet import build
from octnas.nn.weights import load_weights
from octnas.results.networks import Network, Retrained


@dataclass(frozen=True)
class Source:
    """A trained network on disk, and what is known of it.

    Attributes:
        retrained: the network with the results of all its seeds.
        seed: whose weights these are.
        weights: a safetensors file with its state dict.
        class_names: in the order of the logits.
        preparation: of images, in the terms of a timm pretrained config.
        data: what it was trained on: ``source``, ``digest``, ``classes``, ``counts`` by part and
            the ``settings``.
        vanilla_macs: of the same network at α = 0.
        data_license: of the images; empty for unknown.
    """

    retrained: Retrained
    seed: int
    weights: Path
    class_names: tuple[str, ...]
    preparation: Mapping[str, Any]
    data: Mapping[str, Any]
    vanilla_macs: int
    data_license: str = ""

    @property
    def network(self) -> Network:
        """What it is."""
        return self.retrained.network


@dataclass(frozen=True)
class Original:
    """A trained network in memory, with what converting it needs.

    Attributes:
        source: where it comes from.
        network: in eval mode.
        deployed: the same with batch norms folded and kernels split.
        calibration: batches of training images, for int8.
        scratch: a folder for files on the way, removed in the end.
    """

    source: Source
    network: nn.Module
    deployed: nn.Module
    calibration: Batches
    scratch: Path

    @property
    def example(self) -> Tensor:
        """Two images without content, for tracing: a format may keep what it was traced with."""
        return torch.zeros(2, *self.source.network.architecture.input_size)


@dataclass(frozen=True)
class Exported:
    """A network that was written, not yet known to be its source.

    Attributes:
        files: their names within the folder; the first is the one to load.
        run: what was written, read back: images ``(N, C, H, W)`` on the CPU to logits.
        macs: counted on the graph that was written, for one image; None where it holds none.
    """

    files: tuple[str, ...]
    run: Callable[[Tensor], Tensor]
    macs: int | None


def read_original(source: Source, calibration: Batches, scratch: Path) -> Original:
    """The network of a source.

    Raises:
        ArchitectureError: the weights are missing or another network's.
    """
    network = build(source.network.architecture, seed=0)
    load_weights(network, source.weights)
    return Original(source, network.eval(), deploy(network), calibration, scratch)
