"""A fixed architecture for inference: batch norms folded into convolutions, kernels split."""

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from timm.layers import BatchNormAct2d, DropBlock2d
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from octnas.errors import UnsupportedModelError
from octnas.nn.conv import (
    Geometry,
    OctaveConv2d,
    Pooled,
    split_bias,
    split_kernel,
    to_features,
)
from octnas.nn.octave import Features, add_upsampled, upsample
from octnas.nn.octavize import geometries, octavize, stages
from octnas.nn.supernet import fold_switchable
from octnas.space.costs import PATHS

Model = TypeVar("Model", bound=nn.Module)

# Up to this number of low channels, computing at full resolution is faster than reading and writing
# the output, of at least twice as many channels, once more.
_FEW_CHANNELS = 64


def deploy(model: Model) -> Model:
    """A copy of a timm ResNet, octave or plain, for inference at its present α.

    Batch norms are folded into the convolutions before them, each of the four paths of an octave
    convolution has a kernel of its own, and layers that only matter in training are removed. The
    result equals the model in eval mode up to rounding; its state-dict keys differ, its parameters
    are frozen, and its α is fixed.

    Raises:
        UnsupportedModelError: `octnas.octavize` does not take the model, or it is deployed.
    """
    if any(isinstance(module, DeployedBlock) for module in model.modules()):
        raise UnsupportedModelError("the model: is deployed already")
    model = copy.deepcopy(model).eval()
    if not any(isinstance(module, OctaveConv2d) for module in model.modules()):
        octavize(model, 0.0)
    convs = geometries(fold_switchable(model))
    assert isinstance(model, ResNet)
    model.conv1 = nn.Sequential(*_folded([*_chain(model.conv1), model.bn1], convs))
    model.bn1 = nn.Identity()
    model.maxpool = nn.Sequential(*_folded(_chain(model.maxpool), convs))
    for _, stage in stages(model):
        for index, block in enumerate(stage):
            stage[index] = DeployedBlock(block, convs)
    model.drop_rate = 0.0
    model.eval().requires_grad_(False)
    return model


class DeployedConv(nn.Module):
    """An octave convolution with a separate convolution for each path that has channels.

    A summand is added along the way, so that every addition but one directly follows a
    convolution, with which inference engines fuse it. In an export, a 1×1 convolution of few low
    channels to many upsamples its input instead of its output, which is the same, so that the last
    addition can be fused too.

    The batch norm that follows it, if any, is folded in.
    """

    def __init__(self, conv: OctaveConv2d, norm: nn.BatchNorm2d | None, how: Geometry) -> None:
        super().__init__()
        self.how = how
        weight, bias = conv.weight, conv.bias
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        biases = list(split_bias(bias, how))
        paths: list[nn.Module | None] = []
        for (_, target), kernel in zip(PATHS, split_kernel(weight, how), strict=True):
            paths.append(None if kernel is None else _plain_conv(kernel, biases[target], how))
            if kernel is not None:
                biases[target] = None
        self.high_to_high, self.high_to_low, self.low_to_high, self.low_to_low = paths
        self.widens = _widens(self.low_to_high)

    def forward(self, x: Features, plus: Features | None = None) -> Features:
        source = x if isinstance(x, Tensor) else x.high
        inputs = Pooled(source), Pooled(None if isinstance(x, Tensor) else x.low)
        summands = _parts(plus)
        # Traced, sums begin with the summand and end with H→H, which a ReLU follows; else they
        # accumulate in place.
        traced = torch.compiler.is_compiling()
        parts: list[Tensor | None] = list(summands) if traced else [None, None]
        for (from_part, target), conv in reversed(self._paths()) if traced else self._paths():
            steps, there = self.how.steps(from_part, target), parts[target]
            read = inputs[from_part][max(steps, 0)]
            if steps < 0 and self.widens and torch.compiler.is_exporting():
                read, steps = upsample(read, like=source), 0
            y: Tensor = conv(read)
            parts[target] = add_upsampled(there, y, like=source) if steps < 0 else _add(there, y)
        if not traced:
            parts = [
                part if part is None or summand is None else part.add_(summand)
                for part, summand in zip(parts, summands, strict=True)
            ]
        high, low = parts
        return to_features(high, low, source, self.how)

    def _paths(self) -> list[tuple[tuple[int, int], nn.Module]]:
        convs = (self.high_to_high, self.high_to_low, self.low_to_high, self.low_to_low)
        paths = zip(PATHS, convs, strict=True)
        return [(path, conv) for path, conv in paths if conv is not None]


def _widens(conv: nn.Module | None) -> bool:
    """Whether a convolution may come after the upsampling, and then runs faster."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.in_channels <= _FEW_CHANNELS
        and conv.out_channels >= 2 * conv.in_channels
    )


def _parts(x: Features | None) -> tuple[Tensor | None, Tensor | None]:
    """High and low; None where there are no channels."""
    if x is None or isinstance(x, Tensor):
        return x, None
    return x.high if x.high.shape[1] else None, x.low


def _add(there: Tensor | None, y: Tensor) -> Tensor:
    if there is None:
        return y
    return y + there if torch.compiler.is_compiling() else there.add_(y)


class DeployedBlock(nn.Module):
    """timm's basic or bottleneck block, adding in its last convolution if nothing comes between."""

    def __init__(self, block: nn.Module, convs: Mapping[nn.Module, Geometry]) -> None:
        super().__init__()
        last = 3 if isinstance(block, Bottleneck) else 2
        kinds = ("conv", "bn", "act")
        body = [block.get_submodule(f"{kind}{n}") for n in range(1, last) for kind in kinds]
        end = [block.get_submodule(f"{kind}{last}") for kind in ("conv", "bn")]
        self.body = nn.Sequential(*_folded([*body, block.get_submodule("aa")], convs))
        self.last, *after = _folded(end, convs)
        parts = dict(block.named_children())
        self.after = nn.Sequential(*after, *([parts["se"]] if "se" in parts else []))
        self.downsample = None
        if (shortcut := parts.get("downsample")) is not None:
            self.downsample = nn.Sequential(*_folded(_chain(shortcut), convs))
        self.act = block.get_submodule(f"act{last}")

    def forward(self, x: Features) -> Features:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.body(x)
        if len(self.after):
            x = self.after(self.last(x))
            x += shortcut  # type: ignore[operator]
        else:
            x = self.last(x, shortcut)
        activated: Features = self.act(x)
        return activated


def _chain(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.Sequential) else [module]


def _folded(modules: Iterable[nn.Module], convs: Mapping[nn.Module, Geometry]) -> list[nn.Module]:
    """A chain of modules, with batch norms folded into the convolutions before them."""
    left = [m for m in modules if not isinstance(m, nn.Identity | DropBlock2d | nn.Dropout)]
    folded: list[nn.Module] = []
    while left:
        module = left.pop(0)
        if not isinstance(module, OctaveConv2d):
            folded.append(module)
            continue
        norm = left[0] if left else None
        # Without running statistics it normalises by those of the batch, and stays.
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            left.pop(0)
        else:
            norm = None
        folded.append(DeployedConv(module, norm, convs[module]))
        if isinstance(norm, BatchNormAct2d):
            folded.append(norm.act)
    return folded


def _plain_conv(kernel: Tensor, bias: Tensor | None, how: Geometry) -> nn.Conv2d:
    groups = kernel.shape[0] if how.depthwise else how.groups
    conv = nn.Conv2d(
        kernel.shape[1] * groups,
        kernel.shape[0],
        kernel.shape[2:],  # type: ignore[arg-type]
        stride=how.stride,
        padding=how.padding,
        dilation=how.dilation,
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    conv.weight = nn.Parameter(kernel.detach().clone(), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return conv
