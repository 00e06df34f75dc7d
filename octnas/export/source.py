"""A trained network to export, and what a format makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest
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
class Origin:
    """The trained network that a run began with, as far as it concerns another one.

    Attributes:
        name: such as ``"timm's resnet50"``.
        fine_tuned: whether the other one's training began with its weights.
        taught: whether the other one also learned from it.
        licensed: whether its license applies, since it was not trained by the same run.
        top1: on the val images, 0 to 1; None if unknown.
    """

    name: str
    fine_tuned: bool
    taught: bool
    licensed: bool = True
    top1: float | None = None


@dataclass(frozen=True)
class Source:
    """A trained network on disk.

    Attributes:
        retrained: the network with the results of all seeds.
        seed: the one that these weights were trained with.
        weights: a safetensors file with the state dict.
        class_names: in the order of the logits.
        preparation: of images, as in a timm pretrained config.
        data: what it was trained on: ``source``, ``digest``, ``classes``, ``counts`` by part and
            ``settings``.
        vanilla_macs: MACs of the same network at α = 0.
        data_license: license of the images; empty for unknown.
        origin: the network that it was fine-tuned from or taught by; None if there is none.
    """

    retrained: Retrained
    seed: int
    weights: Path
    class_names: tuple[str, ...]
    preparation: Mapping[str, Any]
    data: Mapping[str, Any]
    vanilla_macs: int
    data_license: str = ""
    origin: Origin | None = None

    @property
    def network(self) -> Network:
        """The network without its results."""
        return self.retrained.network

    def weights_digest(self) -> str:
        """SHA-256 of the weights file."""
        with self.weights.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()

    def load(self) -> nn.Module:
        """The network in eval mode.

        Raises:
            ArchitectureError: the weights are missing or belong to another network.
        """
        network = build(self.network.architecture, seed=0)
        load_weights(network, self.weights)
        return network.eval()


@dataclass(frozen=True)
class Loaded:
    """A trained network in memory, and what converting it needs.

    The network is in eval mode; ``deployed`` has its batch norms folded and its kernels split.
    ``calibration`` are batches of training images for int8, ``scratch`` is a temporary folder.
    """

    source: Source
    network: nn.Module
    deployed: nn.Module
    calibration: Batches
    scratch: Path

    @staticmethod
    def read(source: Source, calibration: Batches, scratch: Path) -> "Loaded":
        """Load a source, see `Source.load`."""
        network = source.load()
        return Loaded(source, network, deploy(network), calibration, scratch)

    @property
    def example(self) -> Tensor:
        """Two blank images for tracing; a format may store them."""
        return torch.zeros(2, *self.source.network.architecture.input_size)


@dataclass(frozen=True)
class Exported:
    """An exported network that has not been checked yet.

    Attributes:
        files: names within the folder; the first one is the one to load.
        run: the network read back from them: images ``(N, C, H, W)`` on the CPU to logits.
        macs: counted on the exported graph, for one image; None without a graph.
    """

    files: tuple[str, ...]
    run: Callable[[Tensor], Tensor]
    macs: int | None
