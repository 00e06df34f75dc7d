"""Peak memory: the largest sum of feature maps that live at once.

Counted for one image in float32, as PyTorch runs a deployed network (`octnas.nn.deploy`) block by
block in inference mode: batch norms are folded, activations and additions work in place, a block
computes its shortcut first and holds its input until it ends. An octave convolution also holds its
pooled inputs and the path that it is about to add, max pooling its int64 indices, and an attention
layer a scaled copy. The image, the weights and blur pooling are not counted.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product
from math import ceil

import numpy as np

from octnas.space.costs import BYTES_PER_ACTIVATION, PATHS, ConvShape
from octnas.space.search_space import SearchSpace

# Values of float32 in the bytes of an index.
_INDEX = 2
# A residual block, and whether a convolution is on its shortcut.
_BLOCK = re.compile(r"(?P<block>layer\d+\.\d+)\.(?P<shortcut>downsample)?")


@dataclass(frozen=True, eq=False)
class PeakCost:
    """The peak memory of the architectures of a search space, in bytes.

    Attributes:
        space: the search space.
        terms: bytes at each moment, by the sites that they depend on; shape: their choices.
        vanilla: bytes at α = 0 everywhere.
    """

    space: SearchSpace
    terms: Sequence[tuple[tuple[str, ...], np.ndarray]]
    vanilla: int
    name: str = "peak"
    unit: str = "bytes"

    def of(self, alphas: Mapping[str, float]) -> int:
        """The peak of an architecture; sites that are not named are at their first choice."""
        at = {
            site.name: site.choices.index(alphas.get(site.name, site.choices[0]))
            for site in self.space.sites
        }
        return max(int(term[tuple(at[name] for name in sites)]) for sites, term in self.terms)

    @cached_property
    def values(self) -> list[int]:
        """Every value that a moment may have, ascending; the peak is one of them."""
        return sorted({int(value) for _, term in self.terms for value in term.flat})


def peak_of(space: SearchSpace) -> PeakCost:
    """The peak memory of every architecture of a space."""
    found: dict[tuple[str, ...], np.ndarray] = {}
    vanilla = 0
    for moment in _moments(space):
        sites = moment.sites
        choices = [space.site[name].choices for name in sites]
        values = [moment.values(dict(zip(sites, some, strict=True))) for some in product(*choices)]
        term = np.array(values).reshape([len(some) for some in choices]) * BYTES_PER_ACTIVATION
        found[sites] = np.maximum(term, found[sites]) if sites in found else term
        vanilla = max(vanilla, moment.values(dict.fromkeys(sites, 0.0)) * BYTES_PER_ACTIVATION)
    return PeakCost(space, list(found.items()), vanilla)


@dataclass(frozen=True, eq=False)
class _Map:
    """A feature map; ``size`` is (height, width) at full resolution, ``site`` None: the image."""

    site: str | None
    channels: int
    size: tuple[int, int]

    def split(self, alphas: Mapping[str, float]) -> tuple[int, int]:
        """High and low channels."""
        low = 0 if self.site is None else round(alphas[self.site] * self.channels)
        return self.channels - low, low

    def area(self, times: int) -> int:
        """Pixels after some halvings; odd sides are rounded up."""
        height, width = self.size
        for _ in range(times):
            height, width = ceil(height / 2), ceil(width / 2)
        return height * width

    def values(self, alphas: Mapping[str, float]) -> int:
        """Values of both parts; none for the image."""
        if self.site is None:
            return 0
        high, low = self.split(alphas)
        return high * self.area(0) + low * self.area(1)


@dataclass(frozen=True)
class _Moment:
    """A layer, and what lives while it runs.

    Attributes:
        held: maps that it neither reads nor writes.
        source, target: its input and output.
        conv: None for max pooling and attention.
        always_pools: whether a stride of 2 pools its input even at α = 0.
    """

    held: tuple[_Map, ...]
    source: _Map
    target: _Map
    conv: ConvShape | None
    always_pools: bool

    @property
    def sites(self) -> tuple[str, ...]:
        """Of all maps, each once."""
        maps = (*self.held, self.source, self.target)
        return tuple(dict.fromkeys(one.site for one in maps if one.site is not None))

    def values(self, alphas: Mapping[str, float]) -> int:
        """Values that live at most."""
        before = sum(one.values(alphas) for one in {*self.held, self.source})
        if self.conv is not None:
            return before + self._convolve(alphas)
        if self.source is self.target:
            return before + self.target.values(alphas)
        return before + self._pool(alphas)

    def _pool(self, alphas: Mapping[str, float]) -> int:
        channels = self.target.split(alphas)
        high, low = (count * self.target.area(part) for part, count in enumerate(channels))
        return max((1 + _INDEX) * high, high + (1 + _INDEX) * low)

    def _convolve(self, alphas: Mapping[str, float]) -> int:
        """Pooled inputs, outputs, and a path that is about to be added, path by path."""
        into, out = self.source.split(alphas), self.target.split(alphas)
        strided = self.source.site is not None and self.source.size != self.target.size
        pools = strided and (self.always_pools or into[1] + out[1] > 0)
        assert self.conv is not None
        pooled: dict[tuple[int, int], int] = {}
        done, most = [0, 0], 0
        for source, target in PATHS:
            if not (into[source] and out[target]) or (self.conv.depthwise and source != target):
                continue
            steps = target - source + pools
            for times in range(1, steps + 1):
                pooled[source, times] = into[source] * self.source.area(source + times)
            whole = path = out[target] * self.target.area(target)
            if steps < 0:
                path = out[target] * self.target.area(1) + (0 if done[target] else whole)
            most = max(most, sum(pooled.values()) + sum(done) + path)
            done[target] = whole
        return most


def _moments(space: SearchSpace) -> Iterator[_Moment]:
    """Every layer of the network in the order of execution."""
    always = space.stride_mode == "paper"
    # Beside convolutions and classifier, only attention has weights.
    attention = space.other_macs > space.convs[-1].out_channels * _classes(space)
    channels, height, width = space.input_size
    x = _Map(None, channels, (height, width))
    for block, group in groupby(space.convs, key=_block_of):
        convs = list(group)
        if block is None:
            for conv in convs:
                out = _target(conv)
                yield _Moment((), x, out, conv, always)
                x = out
            continue
        # Only max pooling changes the size between the stem and the first block.
        if x.size != (size := _size_before(convs[0], x.size, block)):
            pooled = _Map(x.site, x.channels, size)
            yield _Moment((), x, pooled, None, always)
            x = pooled
        start = x
        held: tuple[_Map, ...] = (x,)
        body = [conv for conv in convs if not _on_shortcut(conv)]
        for conv in convs:
            if _on_shortcut(conv):
                shortcut = _target(conv)
                yield _Moment((start,), start, shortcut, conv, always)
                held = (start, shortcut)
        for conv in body:
            out = _target(conv)
            yield _Moment(held, x, out, conv, always)
            if attention and conv is body[-1]:
                yield _Moment((*held, x), out, out, None, always)
            x = out


def _classes(space: SearchSpace) -> int:
    return int(space.backbone_args.get("num_classes", 1000))


def _target(conv: ConvShape) -> _Map:
    return _Map(conv.site_out, conv.out_channels, conv.out_size)


def _block_of(conv: ConvShape) -> str | None:
    """The name of its residual block; None in the stem."""
    found = _BLOCK.match(conv.name)
    return found and found["block"]


def _on_shortcut(conv: ConvShape) -> bool:
    found = _BLOCK.match(conv.name)
    return found is not None and found["shortcut"] is not None


def _size_before(first: ConvShape, size: tuple[int, int], block: str) -> tuple[int, int]:
    """The size of a block's input: the first block of all follows max pooling at stride 1."""
    return first.out_size if block == "layer1.0" else size
