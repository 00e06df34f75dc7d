"""The weight-sharing network: one model, one architecture active at a time.

In a supernet a channel is high in one subnet and low in another, and one pair of batch-norm
parameters and one kernel have to serve both. A switchable supernet keeps two sets of batch-norm
values per channel, one for its use as high and one for its use as low (cf. switchable batch
normalisation, arXiv 1812.08928), and a learned scale for each of the four paths of a convolution.
One that starts from a trained network rescales its kernels on every use (`octnas.nn.rescale`).
A subnet needs none of it: `fold_switchable` picks each channel's values, multiplies the kernels by
their scales, and restores timm's modules and keys.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from octnas.errors import ArchitectureError, require
from octnas.nn.backbone import create_backbone
from octnas.nn.conv import OctaveConv2d
from octnas.nn.layers import (
    NormValues,
    OctaveBatchNorm2d,
    OctaveBatchNormAct2d,
    count_batch,
    normalise,
)
from octnas.nn.octave import Features, OctaveTensor, low_mask
from octnas.nn.octavize import geometries, octavize, set_alphas
from octnas.nn.rescale import RescaledConv2d, octave_convs, rescale_kernels, rescale_on_use
from octnas.nn.weights import check_finite, load_weights
from octnas.space.architecture import Architecture
from octnas.space.costs import PATHS
from octnas.space.search_space import SearchSpace

Model = TypeVar("Model", bound=nn.Module)

_ORIGINAL = "original_weight"
_PARAMETERS = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var")


class _Switchable(nn.BatchNorm2d):
    """Batch normalisation with parameters and statistics for each channel as high and as low.

    Those of ``torch.nn.BatchNorm2d`` serve channels that are high; ``low_weight``, ``low_bias``,
    ``low_running_mean`` and ``low_running_var`` those that are low.
    """

    def reset_running_stats(self) -> None:
        """Reset the statistics for both uses."""
        super().reset_running_stats()
        # torch also resets while it builds a module.
        mean, variance = (getattr(self, f"low_{name}", None) for name in _STATISTICS)
        if mean is not None and variance is not None:
            mean.zero_()
            variance.fill_(1)

    def normalise(self, x: Features) -> Features:
        """Normalise each channel with the values for its use, and update its statistics."""
        low_channels, groups = (0, 1) if isinstance(x, Tensor) else (x.low_channels, x.groups)
        like = x if isinstance(x, Tensor) else x.high
        low = low_mask(self.num_features, low_channels, groups, like=like)
        # Both sets take part in every step, as distributed training requires.
        picked = NormValues(*(_pick(self, name, low) for name in (*_STATISTICS, *_PARAMETERS)))
        tracks = self.training and self.track_running_stats
        if isinstance(x, OctaveTensor):
            normalised: Features = normalise(self, x, picked)
        else:
            normalised = F.batch_norm(
                x,
                picked.mean if tracks or not self.training else None,
                picked.variance if tracks or not self.training else None,
                picked.weight,
                picked.bias,
                training=self.training or picked.mean is None,
                momentum=count_batch(self) if tracks else 0.0,
                eps=self.eps,
            )
        if tracks and picked.mean is not None and picked.variance is not None:
            for name, now in zip(_STATISTICS, (picked.mean, picked.variance), strict=True):
                for use, where in (("", ~low), ("low_", low)):
                    values = getattr(self, use + name)
                    values.copy_(torch.where(where, now, values))
        return normalised


class SwitchableBatchNorm2d(_Switchable):
    """An `OctaveBatchNorm2d` with values for each channel as high and as low."""

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        return self.normalise(x)


class SwitchableBatchNormAct2d(_Switchable, BatchNormAct2d):
    """An `OctaveBatchNormAct2d` with values for each channel as high and as low."""

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        activated: Features = self.act(self.drop(self.normalise(x)))  # type: ignore[operator]
        return activated


_SWITCHABLE: dict[type[nn.Module], type[nn.Module]] = {
    OctaveBatchNorm2d: SwitchableBatchNorm2d,
    OctaveBatchNormAct2d: SwitchableBatchNormAct2d,
}
_PLAIN = {switchable: plain for plain, switchable in _SWITCHABLE.items()}


def make_switchable(model: Model) -> Model:
    """Give an octave network switchable batch norms and path scales, in place; returns it.

    At first it computes what it computed before, at any α. A module that has them already keeps
    its values; frozen parameters stay frozen.
    """
    for module in model.modules():
        if type(module) in _SWITCHABLE:
            for name in _PARAMETERS:
                value = getattr(module, name)
                low = value if value is None else value.detach().clone()
                parameter = None if low is None else nn.Parameter(low, value.requires_grad)
                module.register_parameter(f"low_{name}", parameter)
            for name in _STATISTICS:
                value = getattr(module, name)
                module.register_buffer(f"low_{name}", None if value is None else value.clone())
            module.__class__ = _SWITCHABLE[type(module)]
        elif isinstance(module, OctaveConv2d) and module.path_scales is None:
            scales = module.weight.new_ones(len(PATHS))
            module.path_scales = nn.Parameter(scales, module.weight.requires_grad)
    return model


def is_switchable(model: nn.Module) -> bool:
    """Whether a model has switchable batch norms."""
    return any(type(module) in _PLAIN for module in model.modules())


def fold_switchable(model: Model) -> Model:
    """Make a supernet an ordinary octave network of its present α, in place; returns it.

    It computes what it computed before; keys and parameters are timm's again.
    """
    if not is_switchable(model) and not any(isinstance(m, RescaledConv2d) for m in model.modules()):
        return model
    convs, how = geometries(model), None
    with torch.no_grad():
        for module in list(model.modules()):
            if isinstance(module, OctaveConv2d):
                how = convs[module]
                module.weight.copy_(module.scaled_weight(how))
                module.path_scales = None
                if isinstance(module, RescaledConv2d):
                    module.__class__ = OctaveConv2d  # type: ignore[assignment]
            elif isinstance(module, _Switchable):
                # A batch norm normalises the output of the convolution before it.
                assert how is not None
                low = low_mask(module.num_features, how.low_out, how.groups_out, like=module.weight)
                for name in (*_STATISTICS, *_PARAMETERS):
                    picked = _pick(module, name, low)
                    if picked is not None:
                        getattr(module, name).copy_(picked)
                    delattr(module, f"low_{name}")
                module.__class__ = _PLAIN[type(module)]  # type: ignore[assignment]
    return model


def _pick(norm: nn.Module, name: str, low: Tensor) -> Tensor | None:
    high_value, low_value = getattr(norm, name), getattr(norm, f"low_{name}")
    return None if high_value is None else torch.where(low, low_value, high_value)


def build(architecture: Architecture, *, seed: int, weights: str = "") -> nn.Module:
    """A freshly initialised network.

    The weights depend on seed and backbone only: all architectures of a backbone start equal.

    Args:
        architecture: what to build.
        seed: of timm's initialisation; the global random state is restored.
        weights: to start from instead, see `octnas.nn.backbone.create_backbone`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        args = {"in_chans": architecture.input_size[0], **architecture.backbone_args}
        model = create_backbone(architecture.backbone, args, weights=weights)
    return octavize(model, architecture)


def build_original(space: SearchSpace, weights: str) -> nn.Module:
    """The vanilla network of a search space with weights for all of it, in eval mode.

    Args:
        space: of the network.
        weights: see `octnas.nn.backbone.create_backbone`.

    Raises:
        SettingError: the weights are missing, of another network, or lack a part, such as a
            classifier of this size.
        ArchitectureError: they are not finite.
    """
    # Weights that depend on the seed are not those of the file.
    network, other = (build(space.vanilla, seed=seed, weights=weights) for seed in (0, 1))
    check_finite(network, weights)
    pairs = zip(network.state_dict().items(), other.state_dict().values(), strict=True)
    new = ", ".join(name for (name, value), again in pairs if not torch.equal(value, again))
    allowed = f"weights for all of the network; these have no {new}"
    require(not new, "weights", weights, allowed)
    return network.eval()


def build_supernet(
    space: SearchSpace,
    *,
    seed: int,
    switchable: bool = False,
    weights: str = "",
    rescaled: bool = False,
) -> nn.Module:
    """A freshly initialised supernet of a search space, with its first choices active.

    Args:
        space: its architectures.
        seed, weights: see `build`.
        switchable: with switchable batch norms and path scales, see `octnas.nn.supernet`.
        rescaled: whether kernels are rescaled on use, see `octnas.nn.rescale`; for weights of the
            original.
    """
    supernet = build(space.architecture({}), seed=seed, weights=weights)
    if rescaled:
        rescale_on_use(supernet)
    return make_switchable(supernet) if switchable else supernet


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet on disk, see `build_supernet`; picklable, so that any process can load it."""

    space: SearchSpace
    weights: Path
    switchable: bool
    rescaled: bool = False

    def load(self) -> nn.Module:
        """The supernet, with its first choices active."""
        supernet = build_supernet(
            self.space, seed=0, switchable=self.switchable, rescaled=self.rescaled
        )
        load_weights(supernet, self.weights)
        return supernet

    @staticmethod
    def activate(model: nn.Module, alphas: Mapping[str, float]) -> None:
        """See `octnas.nn.supernet.activate`."""
        activate(model, alphas)

    def fits(self, architecture: Architecture) -> bool:
        """Whether it contains an architecture, whatever the size of its images."""
        own = self.space.vanilla
        return replace(architecture, alphas=own.alphas, input_size=own.input_size) == own

    def subnet(self, architecture: Architecture) -> nn.Module:
        """A network of its own with the supernet's weights and batch-norm statistics."""
        supernet = self.load()
        activate(supernet, architecture)
        return fold_switchable(supernet)


@dataclass(frozen=True)
class ConvertedNetwork:
    """A trained network on disk as an octave network of any architecture; picklable.

    Attributes:
        space: its architectures.
        weights: file of its state dict, see `octnas.nn.channel_order`.
    """

    space: SearchSpace
    weights: Path

    def load(self) -> nn.Module:
        """The network at α = 0, which keeps the kernels of the original beside its own."""
        model = build(self.space.vanilla, seed=0)
        load_weights(model, self.weights)
        for conv in octave_convs(model):
            kernel = conv.weight.detach().clone()
            conv.register_buffer(_ORIGINAL, kernel, persistent=False)
        return model

    @staticmethod
    @torch.no_grad()
    def activate(model: nn.Module, alphas: Mapping[str, float]) -> None:
        """Convert the network from the original to an architecture, in place.

        The statistics of batch norms are those of before.

        Args:
            model: from `load`.
            alphas: by site; other sites go to 0.
        """
        activate(model, alphas)
        for conv in octave_convs(model):
            conv.weight.copy_(getattr(conv, _ORIGINAL))
        rescale_kernels(model)


def activate(supernet: nn.Module, architecture: Architecture | Mapping[str, float]) -> None:
    """Make one architecture active, in place and in microseconds; weights are kept.

    Args:
        supernet: an octave network, see `octnas.octavize`.
        architecture: an `Architecture`, or α by site; other sites go to 0.

    Raises:
        ArchitectureError: an unknown site, α outside [0, 1], or an `Architecture` whose
            ``channel_multiple`` or ``stride_mode`` is not the supernet's; nothing has been
            changed then.
    """
    if not isinstance(architecture, Architecture):
        set_alphas(supernet, architecture)
        return
    conv = next((m for m in supernet.modules() if isinstance(m, OctaveConv2d)), None)
    for key in ("channel_multiple", "stride_mode"):
        wanted, found = getattr(architecture, key), getattr(conv, key, None)
        if wanted != found:
            raise ArchitectureError(f"{key}: found {wanted!r}, the supernet's is {found!r}")
    set_alphas(supernet, architecture.alphas)


def subnet(supernet: nn.Module, architecture: Architecture | Mapping[str, float]) -> nn.Module:
    """A copy of the supernet, weights included, with one architecture active.

    It computes what the supernet computes with that architecture, and has timm's keys.
    """
    network = copy.deepcopy(supernet)
    activate(network, architecture)
    return fold_switchable(network)


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by plain averages over some batches of equal size.

    Statistics belong to an architecture: those gathered while training a supernet are a mixture
    over all its architectures, and mislead a score.

    Args:
        model: with the architecture active; its training mode is restored.
        batches: of images ``(N, C, H, W)``, on the model's device.

    Raises:
        ValueError: no batch was given.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("recalibrate: found no batch to average over")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in model.modules()]
    try:
        update_bn(chain([first], iterator), model)
    finally:
        # torch restores neither if a batch fails, and else sets one mode for all modules.
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
