"""The weight-sharing network: one model, one architecture active at a time.

What a supernet holds besides timm's parameters: values by role, and a scale on each path.

In a supernet, a channel is high in one subnet and low in another, and one pair of batch-norm
parameters and one kernel have to serve both. By role, each channel has a pair for either, with
statistics of its own, and each of the four paths of a convolution a learned factor. A subnet needs
none of it: `fold_roles` picks each channel's values, multiplies the kernels by their factors, and
leaves timm's modules and keys.

Batch-norm statistics for one architecture.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from octnas.errors import ArchitectureError
from octnas.nn.backbone import create_backbone
from octnas.nn.conv import PATHS, OctaveConv2d
from octnas.nn.layers import (
    NormValues,
    OctaveBatchNorm2d,
    OctaveBatchNormAct2d,
    count_batch,
    normalise,
)
from octnas.nn.octave import Features, OctaveTensor, low_mask
from octnas.nn.octavize import geometries, octavize, set_alphas
from octnas.nn.weights import load_weights
from octnas.space.architecture import Architecture
from octnas.space.search_space import SearchSpace

Model = TypeVar("Model", bound=nn.Module)

_PARAMETERS = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var")


class RoleBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with parameters and statistics for a channel's use as high and as low.

    Those of ``torch.nn.BatchNorm2d`` serve channels that are high; ``low_weight``, ``low_bias``,
    ``low_running_mean`` and ``low_running_var`` those that are low.
    """

    def forward(self, x: Features) -> Features:  # type: ignore[override]
        return _normalise_by_role(self, x)

    def reset_running_stats(self) -> None:
        """Forget the statistics of both roles."""
        super().reset_running_stats()
        _reset_low(self)


class RoleBatchNormAct2d(BatchNormAct2d):
    """The same with timm's activation."""

    def forward(self, x: Features) -> Features:
        activated: Features = self.act(self.drop(_normalise_by_role(self, x)))
        return activated

    def reset_running_stats(self) -> None:
        """Forget the statistics of both roles."""
        super().reset_running_stats()
        _reset_low(self)


_WITH_ROLES: dict[type[nn.Module], type[nn.Module]] = {
    OctaveBatchNorm2d: RoleBatchNorm2d,
    OctaveBatchNormAct2d: RoleBatchNormAct2d,
}
_WITHOUT_ROLES = {with_roles: without for without, with_roles in _WITH_ROLES.items()}


def add_roles(model: Model) -> Model:
    """Give an octave network values by role and scales of its paths, in place.

    At first it computes what it computed before, at any α. What has them already keeps its values,
    what is frozen stays frozen.

    Args:
        model: a network that `octnas.octavize` has made.

    Returns:
        The model that was given.
    """
    for module in model.modules():
        if type(module) in _WITH_ROLES:
            _add_low_values(module)
            module.__class__ = _WITH_ROLES[type(module)]
        elif isinstance(module, OctaveConv2d) and module.path_scales is None:
            scales = module.weight.new_ones(len(PATHS))
            module.path_scales = nn.Parameter(scales, module.weight.requires_grad)
    return model


def has_roles(model: nn.Module) -> bool:
    """Whether a model holds values by role."""
    return any(type(module) in _WITHOUT_ROLES for module in model.modules())


def fold_roles(model: Model) -> Model:
    """Make a supernet with roles an ordinary octave network of its present α, in place.

    It computes what it computed before; keys and parameters are timm's again.

    Returns:
        The model that was given; one without roles is left as it is.
    """
    if not has_roles(model):
        return model
    convs, how = geometries(model), None
    for module in list(model.modules()):
        if isinstance(module, OctaveConv2d):
            how = convs[module]
            with torch.no_grad():
                module.weight.copy_(module.scaled_weight(how))
            module.path_scales = None
        elif type(module) in _WITHOUT_ROLES:
            # A batch norm normalises what the convolution before it puts out.
            assert how is not None
            assert isinstance(module, nn.BatchNorm2d)
            low = low_mask(module.num_features, how.low_out, how.groups_out, like=module.weight)
            _fold_norm(module, low)
            module.__class__ = _WITHOUT_ROLES[type(module)]  # type: ignore[assignment]
    return model


def _add_low_values(norm: nn.Module) -> None:
    for name in _PARAMETERS:
        value = getattr(norm, name)
        low = None if value is None else value.detach().clone()
        parameter = None if low is None else nn.Parameter(low, value.requires_grad)
        norm.register_parameter(f"low_{name}", parameter)
    for name in _STATISTICS:
        value = getattr(norm, name)
        norm.register_buffer(f"low_{name}", None if value is None else value.clone())


def _reset_low(norm: nn.BatchNorm2d) -> None:
    # torch resets when it builds a module, too.
    mean, variance = (getattr(norm, f"low_{name}", None) for name in _STATISTICS)
    if mean is not None and variance is not None:
        mean.zero_()
        variance.fill_(1)


def _normalise_by_role(norm: nn.BatchNorm2d, x: Features) -> Features:
    low_channels, groups = (0, 1) if isinstance(x, Tensor) else (x.low_channels, x.groups)
    like = x if isinstance(x, Tensor) else x.high
    low = low_mask(norm.num_features, low_channels, groups, like=like)
    # Both roles take part in every step, so that no rank of a distributed training misses one.
    picked = NormValues(*(_pick(norm, name, low) for name in (*_STATISTICS, *_PARAMETERS)))
    tracks = norm.training and norm.track_running_stats
    if isinstance(x, OctaveTensor):
        normalised: Features = normalise(norm, x, picked)
    else:
        normalised = F.batch_norm(
            x,
            picked.mean if tracks or not norm.training else None,
            picked.variance if tracks or not norm.training else None,
            picked.weight,
            picked.bias,
            training=norm.training or picked.mean is None,
            momentum=count_batch(norm) if tracks else 0.0,
            eps=norm.eps,
        )
    if tracks and picked.mean is not None and picked.variance is not None:
        for name, now in zip(_STATISTICS, (picked.mean, picked.variance), strict=True):
            _put(getattr(norm, name), ~low, now)
            _put(getattr(norm, f"low_{name}"), low, now)
    return normalised


def _pick(norm: nn.Module, name: str, low: Tensor) -> Tensor | None:
    high_value, low_value = getattr(norm, name), getattr(norm, f"low_{name}")
    return None if high_value is None else torch.where(low, low_value, high_value)


def _put(values: Tensor, where: Tensor, now: Tensor) -> None:
    values.copy_(torch.where(where, now, values))


def _fold_norm(norm: nn.BatchNorm2d, low: Tensor) -> None:
    with torch.no_grad():
        for name in (*_STATISTICS, *_PARAMETERS):
            value, picked = getattr(norm, name), _pick(norm, name, low)
            if picked is not None:
                value.copy_(picked)
            delattr(norm, f"low_{name}")


def build(architecture: Architecture, *, seed: int, weights: str = "") -> nn.Module:
    """A freshly initialised network.

    Weights come from timm's initialisation and depend on the seed and the backbone alone, not on
    α: all architectures of a backbone start at the same point.

    Args:
        architecture: what to build.
        seed: of the initialisation; the global random state is left as it was.
        weights: in the place of the initialisation, see `octnas.nn.backbone.create_backbone`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        args = {"in_chans": architecture.input_size[0], **architecture.backbone_args}
        model = create_backbone(architecture.backbone, args, weights=weights)
    return octavize(model, architecture)


def build_supernet(
    space: SearchSpace, *, seed: int, switchable: bool = False, weights: str = ""
) -> nn.Module:
    """A freshly initialised supernet of a search space, with its first choices active.

    Args:
        space: what it holds.
        seed: of the initialisation.
        switchable: with values by role and scales of the paths, see `octnas.nn.supernet`.
        weights: what it begins with, see `octnas.nn.backbone.create_backbone`.
    """
    supernet = build(space.architecture({}), seed=seed, weights=weights)
    return add_roles(supernet) if switchable else supernet


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet on disk; picklable, so that any process can load it.

    Attributes:
        space: what it holds.
        weights: file of its weights.
        switchable: whether it has values by role.
    """

    space: SearchSpace
    weights: Path
    switchable: bool

    def load(self) -> nn.Module:
        """The supernet, with its first choices active."""
        supernet = build_supernet(self.space, seed=0, switchable=self.switchable)
        load_weights(supernet, self.weights)
        return supernet


def activate(supernet: nn.Module, architecture: Architecture | Mapping[str, float]) -> None:
    """Make one architecture active, in place and in microseconds; weights are not touched.

    Args:
        supernet: a model that `octnas.octavize` has made.
        architecture: or α by site; sites that are not named go to 0.

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
    return fold_roles(network)


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by plain averages over some batches.

    Statistics belong to an architecture: those that a supernet has gathered are a mixture over
    all architectures it was trained with, and mislead a score. All batches should have one size,
    then their order does not matter.

    Args:
        model: with the architecture active; its training mode is left as it was.
        batches: of images ``(N, C, H, W)``, on the model's device.

    Raises:
        ValueError: no batch at all.
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
        # torch puts back neither if a batch fails, and one mode for all modules if none does.
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
