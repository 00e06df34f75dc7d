"""Octave networks once more, slowly and from the paper's formulas alone; and test helpers.

Nothing here uses code of `octnas`: pooling, upsampling, rounding and the order of operations are
written anew from "Drop an Octave" (arXiv 1904.05049), §3.2 and §3.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Maps:
    """A feature map's two parts, each of which may have no channels at all."""

    high: Tensor
    low: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.high.shape[-2], self.high.shape[-1]


def plain(x: Tensor) -> Maps:
    return split(x, 0)


def split(x: Tensor, low: int) -> Maps:
    """The last ``low`` channels pooled."""
    return Maps(x[:, : x.shape[1] - low], pool(x[:, x.shape[1] - low :]))


def pool(x: Tensor) -> Tensor:
    """Mean over 2×2 cells; at an odd border over the pixels that are there."""
    height, width = x.shape[-2:]
    border = (0, width % 2, 0, height % 2)
    cells = [F.pad(part, border) for part in (x, torch.ones_like(x))]
    total, count = (sum(c[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) for c in cells)
    return total / count


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixel (i, j) comes from (⌊i/2⌋, ⌊j/2⌋)."""
    rows, columns = ([i // 2 for i in range(side)] for side in size)
    return x[:, :, rows][:, :, :, columns]


def octave_conv(
    x: Maps,
    weight: Tensor,
    bias: Tensor | None,
    low_out: int,
    *,
    padding: int,
    dilation: int = 1,
    stride: int = 1,
    pooled: bool = True,
) -> Maps:
    """Four convolutions, as in §3.3.

    Y^H = f(X^H; W^{H→H}) + upsample(f(X^L; W^{L→H}))
    Y^L = f(X^L; W^{L→L}) + f(pool(X^H); W^{H→L})

    A pooled stride of 2 pools every input once more, so that L→H needs no upsampling; one that is
    not pooled strides in every path, and takes plain inputs.
    """
    high_out = weight.shape[0] - low_out
    high_in = x.high.shape[1]

    def f(part: Tensor, outputs: slice, inputs: slice, step: int = 1) -> Tensor:
        # One channel of zeros more on both sides, since torch wants one at least.
        padded = F.pad(weight[outputs, inputs], (0, 0, 0, 0, 0, 1, 0, 1))
        part = F.pad(part, (0, 0, 0, 0, 0, 1))
        return F.conv2d(part, padded, None, step, padding=padding, dilation=dilation)[:, :-1]

    high, low = slice(0, high_out), slice(high_out, None)
    from_high, from_low = slice(0, high_in), slice(high_in, None)
    if stride == 1:
        y_high = f(x.high, high, from_high) + upsample(f(x.low, high, from_low), x.size)
        y_low = f(x.low, low, from_low) + f(pool(x.high), low, from_high)
    elif pooled:
        half = pool(x.high)
        y_high = f(half, high, from_high) + f(x.low, high, from_low)
        y_low = f(pool(x.low), low, from_low) + f(pool(half), low, from_high)
    else:
        assert x.low.shape[1] == 0
        y_high = f(x.high, high, from_high, stride)
        y_low = f(pool(x.high), low, from_high, stride)
    if bias is not None:
        y_high = y_high + bias[:high_out].reshape(1, -1, 1, 1)
        y_low = y_low + bias[high_out:].reshape(1, -1, 1, 1)
    return Maps(y_high, y_low)


def resplit(x: Maps, low: int) -> Maps:
    """Every channel by itself: pooled, upsampled or left as it is."""
    have, channels = x.low.shape[1], x.high.shape[1] + x.low.shape[1]
    full = [x.high[:, i : i + 1] for i in range(channels - have)]
    half = [x.low[:, i : i + 1] for i in range(have)]
    at_full = full + [upsample(channel, x.size) for channel in half]
    at_half = [pool(channel) for channel in full] + half
    none_high, none_low = x.high[:, :0], x.low[:, :0]
    return Maps(
        torch.cat([none_high, *at_full[: channels - low]], 1),
        torch.cat([none_low, *at_half[channels - low :]], 1),
    )


class ReferenceResNet:
    """The eval-mode forward pass of a timm ResNet at some α by site, from timm's own weights."""

    def __init__(
        self, model: ResNet, alphas: Mapping[str, float], multiple: int, stride_mode: str
    ) -> None:
        self.model, self.alphas = model, alphas
        self.multiple, self.stride_mode = multiple, stride_mode

    def __call__(self, images: Tensor) -> Tensor:
        model = self.model
        x = self.conv(plain(images), model.conv1, "stem", stem=True)
        x = self.relu(self.norm(x, model.bn1))
        # Padded by a channel as above: torch pools no tensor without any.
        x = Maps(*(model.maxpool(F.pad(p, (0, 0, 0, 0, 0, 1)))[:, :-1] for p in (x.high, x.low)))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for index, block in enumerate(getattr(model, stage).children()):
                x = self.block(x, block, f"{stage}.{index}", stage)
        pooled = torch.cat([x.high.mean((2, 3)), x.low.mean((2, 3))], 1)
        return pooled @ model.fc.weight.T + model.fc.bias

    def block(self, x: Maps, block: nn.Module, name: str, stage: str) -> Maps:
        convs = ["conv1", "conv2"] if isinstance(block, BasicBlock) else ["conv1", "conv2", "conv3"]
        y = x
        for conv in convs:
            last = conv == convs[-1]
            site = stage if last else f"{name}.{conv}"
            y = self.norm(
                self.conv(y, getattr(block, conv), site), block.get_submodule(f"bn{conv[-1]}")
            )
            y = y if last else self.relu(y)
        if block.downsample is None:
            shortcut = resplit(x, self.low(stage, x.high.shape[1] + x.low.shape[1]))
        else:
            conv, norm = block.downsample
            shortcut = self.norm(self.conv(x, conv, stage), norm)
        return self.relu(Maps(y.high + shortcut.high, y.low + shortcut.low))

    def conv(self, x: Maps, conv: nn.Conv2d, site: str, *, stem: bool = False) -> Maps:
        low = self.low(site, conv.out_channels)
        vanilla = low == 0 and x.low.shape[1] == 0
        return octave_conv(
            x,
            conv.weight,
            conv.bias,
            low,
            padding=conv.padding[0],
            dilation=conv.dilation[0],
            stride=conv.stride[0],
            pooled=not stem and not (vanilla and self.stride_mode == "timm"),
        )

    def low(self, site: str, channels: int) -> int:
        alpha = Fraction(self.alphas.get(site, 0)).limit_denominator(1000)
        return channels if alpha == 1 else alpha * channels // self.multiple * self.multiple

    def norm(self, x: Maps, norm: nn.BatchNorm2d) -> Maps:
        split_at = x.high.shape[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        high, low = slice(0, split_at), slice(split_at, None)
        return Maps(
            x.high * scale[high].reshape(-1, 1, 1) + shift[high].reshape(-1, 1, 1),
            x.low * scale[low].reshape(-1, 1, 1) + shift[low].reshape(-1, 1, 1),
        )

    @staticmethod
    def relu(x: Maps) -> Maps:
        return Maps(x.high.clamp(min=0), x.low.clamp(min=0))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm parameters and statistics that matter.

    timm starts the last one of every block at zero, so that a fresh network's logits are about
    1e-9 and any two of them compare as equal.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d):
            continue
        for name, value in module.state_dict().items():
            if name in ("weight", "running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif name in ("bias", "running_mean"):
                value.copy_(torch.randn(value.shape, generator=generator) / 2)
    return model


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images that depend on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_sizeable(*tensors: Tensor) -> None:
    """Refuse to compare what is nearly nothing."""
    for tensor in tensors:
        assert tensor.abs().max() > 1e-2
        assert tensor.std() > 1e-3
        assert torch.isfinite(tensor).all()
