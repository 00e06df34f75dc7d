"""A search space: the sites of a backbone, their α choices, and what every architecture costs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import lcm, prod
from typing import Any

import numpy as np

from octnas.errors import ArchitectureError
from octnas.io.files import read_as
from octnas.space.architecture import Architecture, StrideMode, check_alphas
from octnas.space.costs import (
    BYTES_PER_ACTIVATION,
    ConvShape,
    Cost,
    conv_activations,
    conv_macs,
    low_channels,
)

SCHEMA = 1

# Shares that differ by less give the same number of channels, see `low_channels`.
_SAME = 1e-9


@dataclass(frozen=True)
class Site:
    """One searchable α.

    Attributes:
        name: such as ``"layer1"`` (the residual stream of stage 1) or ``"layer1.0.conv2"``.
        channels: output channels of its convolutions.
        groups: groups of its convolutions; low channels are a multiple of them.
        choices: α to choose from, quantized to shares of low channels, ascending and distinct;
            a fixed site has one.
        depth: mean position of its convolutions in the network, 0 (first) to 1 (last).
    """

    name: str
    channels: int
    groups: int
    choices: tuple[float, ...]
    depth: float

    @property
    def searchable(self) -> bool:
        """Whether there is more than one choice."""
        return len(self.choices) > 1


@dataclass(frozen=True)
class SearchSpace:
    """All architectures of one backbone that a search may choose from.

    Made from a model by `octnas.nn.search_space.search_space`; needs no torch itself.

    Attributes:
        backbone, backbone_args, input_size, channel_multiple, stride_mode: as in `Architecture`.
        alphas: the α to choose from before they are quantized, ascending.
        sites: in the order of execution.
        convs: every convolution of the backbone.
        other_macs: MACs of the linear layers, the same for every architecture.
        params: learnable parameters, the same for every architecture.
    """

    backbone: str
    backbone_args: Mapping[str, Any]
    input_size: tuple[int, int, int]
    channel_multiple: int
    stride_mode: StrideMode
    alphas: tuple[float, ...]
    sites: tuple[Site, ...]
    convs: tuple[ConvShape, ...]
    other_macs: int
    params: int

    @cached_property
    def site(self) -> Mapping[str, Site]:
        """The sites by name."""
        return {site.name: site for site in self.sites}

    @property
    def searchable(self) -> tuple[Site, ...]:
        """The sites with more than one choice."""
        return tuple(site for site in self.sites if site.searchable)

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return prod(len(site.choices) for site in self.sites)

    def refined(self, steps: int) -> "SearchSpace":
        """The space with further choices at its searchable sites: α in this many equal steps."""

        def finer(site: Site) -> Site:
            wanted = (number / steps for number in range(steps + 1))
            some = (
                low_channels(a, site.channels, self.channel_multiple, site.groups) for a in wanted
            )
            choices = {*site.choices, *(low / site.channels for low in some)}
            return replace(site, choices=tuple(sorted(choices)))

        return replace(
            self, sites=tuple(finer(site) if site.searchable else site for site in self.sites)
        )

    def quantize(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """Shares of low channels for every site; others than those named are at the first choice.

        Raises:
            ArchitectureError: an unknown site, or α outside [0, 1].
        """
        check_alphas(alphas, self.site)
        quantized = {}
        for site in self.sites:
            alpha = alphas.get(site.name, site.choices[0])
            low = low_channels(alpha, site.channels, self.channel_multiple, site.groups)
            quantized[site.name] = low / site.channels
        return quantized

    def key(self, alphas: Mapping[str, float]) -> tuple[float, ...]:
        """Identifies an architecture within this space, at a tenth of the time of its id.

        Raises:
            ArchitectureError: an unknown site, or α outside [0, 1].
        """
        return tuple(self.quantize(alphas).values())

    def architecture(self, alphas: Mapping[str, float]) -> Architecture:
        """The architecture with these α by site, quantized.

        Raises:
            ArchitectureError: an unknown site, or α outside [0, 1].
        """
        return Architecture(
            backbone=self.backbone,
            input_size=self.input_size,
            alphas=self.quantize(alphas),
            backbone_args=self.backbone_args,
            channel_multiple=self.channel_multiple,
            stride_mode=self.stride_mode,
        )

    def check_quantized(self, architecture: Architecture) -> None:
        """Refuse an α that does not give a whole number of low channels and would be rounded.

        Raises:
            ArchitectureError: naming the site and the nearest α allowed; or an unknown site.
        """
        quantized = self.quantize(architecture.alphas)
        for name, alpha in architecture.alphas.items():
            site, nearest = self.site[name], quantized[name]
            if abs(alpha - nearest) > _SAME:
                step = lcm(self.channel_multiple, site.groups)
                above = min(nearest + step / site.channels, 1.0)
                raise ArchitectureError(
                    f"α of site {name!r}: found {alpha!r}, allowed: multiples of {step} of its "
                    f"{site.channels} channels, such as {nearest!r} or {above!r}"
                )

    def check_choices(self, architecture: Architecture) -> None:
        """Refuse an architecture that is not of this search space.

        Raises:
            ArchitectureError: another network, an unknown site, or an α that is not among the
                site's choices.
        """
        for key in ("backbone", "input_size", "channel_multiple", "stride_mode"):
            found, own = getattr(architecture, key), getattr(self, key)
            if found != own:
                raise ArchitectureError(f"{key}: found {found!r}, the search space's is {own!r}")
        found_args, own_args = (
            {"in_chans": self.input_size[0], **args}
            for args in (architecture.backbone_args, self.backbone_args)
        )
        if found_args != own_args:
            raise ArchitectureError(
                f"backbone_args: found {found_args}, the search space's are {own_args}"
            )
        self.quantize(architecture.alphas)
        for site in self.sites:
            alpha = architecture.alphas.get(site.name, 0.0)
            if not any(abs(alpha - choice) <= _SAME for choice in site.choices):
                choices = ", ".join(f"{choice:g}" for choice in site.choices)
                raise ArchitectureError(
                    f"α of site {site.name!r}: found {alpha:g}, allowed in the search space: "
                    f"{choices}"
                )

    @cached_property
    def vanilla(self) -> Architecture:
        """The backbone itself: α = 0 at every site, the fixed ones too."""
        return self.architecture(dict.fromkeys(self.site, 0.0))

    def uniform(self, alpha: float) -> Architecture:
        """One α at every searchable site, as in the paper; the fixed sites are kept."""
        return self.architecture({site.name: alpha for site in self.searchable})

    def cost(self, architecture: Architecture | Mapping[str, float]) -> Cost:
        """MACs, parameters and activation memory of one architecture, for one image.

        In an `Architecture`, sites that are not named are at 0, else at their first choice.

        Raises:
            ArchitectureError: an unknown site.
        """
        if isinstance(architecture, Architecture):
            architecture = {**dict.fromkeys(self.site, 0.0), **architecture.alphas}
        alphas = self.quantize(architecture)
        macs, activations = float(self.other_macs), 0.0
        for conv in self.convs:
            alpha_in = 0.0 if conv.site_in is None else alphas[conv.site_in]
            macs += conv_macs(conv, alpha_in, alphas[conv.site_out])
            activations += conv_activations(conv, alphas[conv.site_out])
        return Cost(round(macs), self.params, round(activations) * BYTES_PER_ACTIVATION)

    def macs(self, alphas: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """MACs of many architectures at once.

        Args:
            alphas: shape ``(n, len(sites))``, quantized shares in the order of `sites`.

        Returns:
            Shape ``(n,)``, int64.
        """
        column = {site.name: index for index, site in enumerate(self.sites)}
        total = np.full(len(alphas), float(self.other_macs))
        for conv in self.convs:
            alpha_out = alphas[:, column[conv.site_out]]
            # Without a site, the input's α does not matter.
            alpha_in = alphas[:, column[conv.site_in or conv.site_out]]
            total += conv_macs(conv, alpha_in, alpha_out)
        macs: np.ndarray[Any, Any] = np.rint(total).astype(np.int64)
        return macs

    @cached_property
    def vanilla_macs(self) -> int:
        """MACs at α = 0 everywhere."""
        return self.cost(self.vanilla).macs

    @cached_property
    def smallest_macs(self) -> int:
        """MACs of the smallest architecture; a larger α never costs more."""
        return self.cost({site.name: site.choices[-1] for site in self.sites}).macs

    @cached_property
    def largest_macs(self) -> int:
        """MACs of the largest architecture."""
        return self.cost({site.name: site.choices[0] for site in self.sites}).macs

    def to_dict(self) -> dict[str, Any]:
        """The space as a JSON document with a schema version."""
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "SearchSpace":
        """Read what `to_dict` wrote, also after a round trip through JSON.

        Raises:
            ArchitectureError: an unknown schema version.
            TypeError, ValueError: other contents, or parts that do not fit each other.
        """
        if document.get("schema") != SCHEMA:
            raise ArchitectureError(
                f"search space schema: found {document.get('schema')!r}, allowed: {SCHEMA}"
            )
        # `grid` is the former name of `alphas`.
        space = read_as(SearchSpace, {"alphas": document.get("grid"), **document})
        _check_parts(space)
        return space


def _check_parts(space: SearchSpace) -> None:
    """Raise `ValueError`, naming the part, for a space whose costs cannot be computed."""
    for site in space.sites:
        choices = site.choices
        if not choices or list(choices) != sorted(set(choices)) or not 0 <= choices[0] <= 1:
            raise ValueError(f"choices of site {site.name!r}: found {choices}")
        if not (choices[-1] <= 1 and site.channels >= 1 and site.groups >= 1):
            raise ValueError(f"site {site.name!r}: found {site}")
    for conv in space.convs:
        if conv.site_in not in (None, *space.site) or conv.site_out not in space.site:
            raise ValueError(f"convolution {conv.name!r}: an unknown site")
        sizes = (conv.in_channels, conv.out_channels, conv.groups, *conv.kernel, *conv.out_size)
        if min(sizes) < 1:
            raise ValueError(f"convolution {conv.name!r}: found {sizes}, allowed: 1 or more")
    if not (space.sites and space.convs and space.channel_multiple >= 1):
        raise ValueError("no sites, no convolutions, or a channel_multiple below 1")
