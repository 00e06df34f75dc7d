"""Whole octave networks once more, slowly, from timm's own modules; nothing of `octnas` is used."""

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from math import lcm

import torch
from timm.layers import (
    AvgPool2dSame,
    BlurPool2d,
    DropBlock2d,
    DropPath,
    EcaModule,
    EffectiveSEModule,
    SEModule,
)
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nn.reference import (
    Maps,
    blur_pool,
    octave_conv,
    per_channel,
    plain,
    pool,
    resplit,
    scale,
)

ACTIVATIONS = (nn.ReLU, nn.SiLU)
ATTENTION = (SEModule, EffectiveSEModule, EcaModule)


class ReferenceResNet:
    """The forward pass of a timm ResNet at some α by site, with timm's own weights.

    In training mode it normalises by the batch and moves the model's statistics.
    """

    def __init__(
        self, model: ResNet, alphas: Mapping[str, float], multiple: int, stride_mode: str
    ) -> None:
        self.model, self.alphas = model, alphas
        self.multiple, self.stride_mode = multiple, stride_mode

    def __call__(self, images: Tensor) -> Tensor:
        model = self.model
        deep = not isinstance(model.conv1, nn.Conv2d)
        x = self.chain(
            plain(images), [model.conv1], ("stem.0", "stem.1", "stem.2") if deep else ("stem",)
        )
        x = self.chain(x, [model.bn1, model.act1, model.maxpool], ("stem.pool",))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for index, block in enumerate(getattr(model, stage).children()):
                x = self.block(x, block, f"{stage}.{index}", stage)
        return self.head(x)

    def head(self, x: Maps) -> Tensor:
        averages = per_channel((x.high.mean((2, 3)), x.low.mean((2, 3))), x)
        maxima = per_channel((x.high.amax((2, 3)), x.low.amax((2, 3))), x)
        pooled = {
            "avg": averages,
            "max": maxima,
            "avgmax": (averages + maxima) / 2,
            "catavgmax": torch.cat([averages, maxima], 1),
        }[self.model.global_pool.pool_type]
        return pooled @ self.model.fc.weight.T + self.model.fc.bias

    def block(self, x: Maps, block: nn.Module, name: str, stage: str) -> Maps:
        conv2 = block.conv2
        depthwise = 1 < conv2.groups == conv2.in_channels == conv2.out_channels
        groups = 1 if depthwise else conv2.groups
        first, second = f"{name}.conv1", f"{name}.conv1" if depthwise else f"{name}.conv2"
        y = self.conv(x, block.conv1, stage if stage == first else first, groups)
        if isinstance(block, BasicBlock):
            y = self.chain(y, [block.bn1, block.drop_block, block.act1, block.aa])
            y = self.chain(self.conv(y, conv2, stage), [block.bn2])
        else:
            y = self.conv(self.chain(y, [block.bn1, block.act1]), conv2, second, groups)
            y = self.chain(y, [block.bn2, block.drop_block, block.act2, block.aa])
            y = self.chain(self.conv(y, block.conv3, stage), [block.bn3])
        if block.se is not None:
            y = self.attend(y, block.se)
        y = self.chain(y, [block.drop_path or nn.Identity()])
        if block.downsample is None:
            shortcut = resplit(x, self.low(stage, x.channels))
        else:
            shortcut = self.chain(x, [block.downsample], (stage,))
        total = Maps(y.high + shortcut.high, y.low + shortcut.low)
        last = block.act2 if isinstance(block, BasicBlock) else block.act3
        return self.chain(total, [last])

    def chain(self, x: Maps, modules: Iterable[nn.Module], sites: Iterable[str] = ()) -> Maps:
        """One module after another; the convolutions among them belong to the sites in turn."""
        names = iter(sites)
        for module in flat(modules):
            if isinstance(module, nn.Conv2d):
                site = next(names)
                x = self.conv(x, module, site, image=site in ("stem", "stem.0"))
            elif isinstance(module, nn.BatchNorm2d):
                x = self.norm(x, module)
            elif isinstance(module, DropPath | DropBlock2d):
                x = drop(x, module)
            else:
                x = both(x, module)
        return x

    def conv(
        self, x: Maps, conv: nn.Conv2d, site: str, split_groups: int = 1, *, image: bool = False
    ) -> Maps:
        low = self.low(site, conv.out_channels, split_groups)
        vanilla = low == 0 and x.low.shape[1] == 0
        return octave_conv(
            x,
            conv.weight,
            conv.bias,
            low,
            padding=conv.padding[0],
            dilation=conv.dilation[0],
            stride=conv.stride[0],
            pooled=not image and not (vanilla and self.stride_mode == "timm"),
            groups=conv.groups,
            split_groups=split_groups,
        )

    def low(self, site: str, channels: int, groups: int = 1) -> int:
        alpha, step = Fraction(self.alphas.get(site, 0)), lcm(self.multiple, groups)
        alpha = alpha.limit_denominator(1000)
        return channels if alpha == 1 else alpha * channels // step * step

    def norm(self, x: Maps, norm: nn.BatchNorm2d) -> Maps:
        mean, variance = norm.running_mean[None], norm.running_var[None]
        if norm.training:
            mean = moment(x, lambda part: part.mean((0, 2, 3)))
            variance = moment(x, lambda part: part.var((0, 2, 3), correction=0))
            unbiased = moment(x, lambda part: part.var((0, 2, 3), correction=1))
            move(norm, mean[0], unbiased[0])
        factors = norm.weight / (variance + norm.eps).sqrt()
        y = scale(x, factors, norm.bias - mean * factors)
        return both(y, norm.act) if hasattr(norm, "act") else y

    @staticmethod
    def attend(x: Maps, module: nn.Module) -> Maps:
        """One gate per channel, from all channels in their order."""
        means = per_channel((x.high.mean((2, 3)), x.low.mean((2, 3))), x)
        if not isinstance(module, EcaModule):
            if module.add_maxpool:
                maxima = per_channel((x.high.amax((2, 3)), x.low.amax((2, 3))), x)
                means = (means + maxima) / 2
            vector = means[:, :, None, None]
            if isinstance(module, SEModule):
                vector = module.act(module.bn(module.fc1(vector)))
            last = module.fc2 if isinstance(module, SEModule) else module.fc
            return scale(x, module.gate(last(vector))[:, :, 0, 0])
        rows = means[:, None]  # (N, 1, C)
        for index, conv in enumerate(c for c in (module.conv, module.conv2) if c is not None):
            rows = module.act(rows) if index else rows
            kernel = conv.weight.shape[-1]
            padded = F.pad(rows, (kernel // 2, kernel // 2))
            rows = torch.einsum("nick,oik->noc", padded.unfold(2, kernel, 1), conv.weight)
            rows = rows if conv.bias is None else rows + conv.bias[:, None]
        return scale(x, module.gate(rows[:, 0]))


def flat(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from flat(module.children())
        elif not isinstance(module, nn.Identity):
            yield module


def moment(x: Maps, of: Callable[[Tensor], Tensor]) -> Tensor:
    """One value per channel, (1, C), of a whole batch."""
    values = [of(part)[None] if part.shape[1] else part[:1, :, 0, 0] for part in (x.high, x.low)]
    return per_channel((values[0], values[1]), x)


def move(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Running statistics, with the unbiased variance."""
    with torch.no_grad():
        for running, new in ((norm.running_mean, mean), (norm.running_var, variance)):
            running.copy_((1 - norm.momentum) * running + norm.momentum * new)
        norm.num_batches_tracked += 1


def drop(x: Maps, module: DropPath | DropBlock2d) -> Maps:
    """One random mask for all channels; a low pixel is weighted with that of its cell, on average.

    timm draws one per image for a path, one per image and pixel for blocks.
    """
    if not module.training or not module.drop_prob:
        return x
    size = (1, 1) if isinstance(module, DropPath) else x.size
    mask = module(x.high.new_ones(x.high.shape[0], 1, *size))
    return Maps(x.high * mask, x.low * pool(mask), x.groups)


def both(x: Maps, module: nn.Module) -> Maps:
    """What treats both parts alike; low maps stay half as large as high ones, rounded up."""
    high, low = (one(part, module) for part in (x.high, x.low))
    if isinstance(module, nn.AvgPool2d) and module.stride == 2 and not module.ceil_mode:
        high = high[..., : x.size[0] // 2, : x.size[1] // 2]
    rows, columns = (-(-side // 2) for side in high.shape[-2:])
    return Maps(high, low[..., :rows, :columns], x.groups)


def one(x: Tensor, module: nn.Module) -> Tensor:
    if isinstance(module, nn.ReLU):
        return x.clamp(min=0)
    if isinstance(module, nn.SiLU):
        return x * x.sigmoid()
    if isinstance(module, BlurPool2d):
        assert module.filt_size == 3
        return blur_pool(x, module.stride)
    if isinstance(module, AvgPool2dSame):
        padded = F.pad(x, (0, 1, 0, 1))
        height, width = x.shape[-2:]
        shifts = [(i, j) for i in (0, 1) for j in (0, 1)]
        return sum(padded[..., i : i + height, j : j + width] for i, j in shifts) / 4
    if isinstance(module, nn.AvgPool2d):
        assert module.kernel_size == module.stride == 2
        return pool(x)
    assert isinstance(module, nn.MaxPool2d)
    # Padded by a channel, since torch pools no tensor without any.
    return module(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :-1]
