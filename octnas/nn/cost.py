"""The cost of a model at given α, by name, without allocating its weights."""

from dataclasses import asdict, dataclass
from typing import Any

from octnas.errors import require
from octnas.nn.backbone import create_backbone, pretrained_cfg
from octnas.nn.octavize import Alphas, resolve_alphas
from octnas.nn.search_space import search_space
from octnas.space.architecture import Architecture, StrideMode
from octnas.space.costs import Cost, conv_macs
from octnas.space.search_space import SearchSpace


@dataclass(frozen=True)
class SiteCost:
    """One site of a costed model.

    Attributes:
        alpha: quantized to a share of low channels.
        channels, low_channels: of its convolutions' outputs.
        macs: of those convolutions.
    """

    name: str
    alpha: float
    channels: int
    low_channels: int
    macs: int


@dataclass(frozen=True)
class ModelCost:
    """The cost of one architecture for one image, in total and by site.

    Attributes:
        architecture: with quantized α.
        cost: MACs, parameters and activation memory.
        vanilla_macs: MACs at α = 0 everywhere.
        sites: in the order of execution.
    """

    architecture: Architecture
    cost: Cost
    vanilla_macs: int
    sites: tuple[SiteCost, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions and linear layers (the paper's "FLOPs")."""
        return self.cost.macs

    @property
    def params(self) -> int:
        """Learnable parameters; the same for every α."""
        return self.cost.params

    @property
    def activation_bytes(self) -> int:
        """The convolutions' outputs for one image, in float32."""
        return self.cost.activation_bytes

    def to_dict(self) -> dict[str, Any]:
        """All figures as a JSON object."""
        return {
            **asdict(self.cost),
            "vanilla_macs": self.vanilla_macs,
            "architecture": {"id": self.architecture.id, **self.architecture.to_dict()},
            "sites": [asdict(site) for site in self.sites],
        }


def cost(
    model: str | Architecture,
    alphas: Alphas | None = None,
    *,
    input_size: tuple[int, int, int] | None = None,
    backbone_args: dict[str, Any] | None = None,
    channel_multiple: int = 1,
    stride_mode: StrideMode = "timm",
) -> ModelCost:
    """The cost of a timm ResNet as an octave network, or of an architecture.

    Args:
        model: a timm model's name; or an `Architecture`, with which only the input size may be
            given.
        alphas: as for `octnas.octavize`, by default 0; a number means the paper's rule.
        input_size: ``(channels, height, width)``; by default timm's for the model.
        backbone_args: keyword arguments for ``timm.create_model``.
        channel_multiple: low channels are rounded down to a multiple of this.
        stride_mode: ``"timm"`` or ``"paper"``; MACs are the same.

    Raises:
        SettingError: timm knows no such model, or other arguments given with an `Architecture`.
        UnsupportedModelError: a model that octave feature maps cannot pass through.
        ArchitectureError: an unknown site, or α outside [0, 1].
    """
    fits = isinstance(model, str | Architecture)
    require(fits, "model", type(model).__name__, "a timm model's name, or an Architecture")
    if isinstance(model, Architecture):
        others = (alphas, channel_multiple, stride_mode)
        allowed = "an Architecture without α, channel_multiple or stride_mode"
        require(others == (None, 1, "timm"), "architecture", others, allowed)
        alphas, input_size = model, input_size or model.input_size
        backbone_args, model = dict(model.backbone_args), model.backbone
    if isinstance(alphas, Architecture):
        channel_multiple, stride_mode = alphas.channel_multiple, alphas.stride_mode
    backbone = create_backbone(model, backbone_args or {}, meta=True)
    by_site = resolve_alphas(backbone, 0.0 if alphas is None else alphas)
    space = search_space(
        model,
        input_size or tuple(pretrained_cfg(backbone).get("input_size", (3, 224, 224))),
        alphas=(0.0,),
        backbone_args=backbone_args,
        fixed={},
        channel_multiple=channel_multiple,
        stride_mode=stride_mode,
    )
    architecture = space.architecture(by_site)
    return ModelCost(
        architecture=architecture,
        cost=space.cost(architecture),
        vanilla_macs=space.vanilla_macs,
        sites=_site_costs(space, architecture),
    )


def _site_costs(space: SearchSpace, architecture: Architecture) -> tuple[SiteCost, ...]:
    alphas, macs = architecture.alphas, dict.fromkeys(space.site, 0.0)
    for conv in space.convs:
        alpha_in = alphas[conv.site_in] if conv.site_in else 0.0
        macs[conv.site_out] += conv_macs(conv, alpha_in, alphas[conv.site_out])
    return tuple(
        SiteCost(
            name=site.name,
            alpha=alphas[site.name],
            channels=site.channels,
            low_channels=round(alphas[site.name] * site.channels),
            macs=round(macs[site.name]),
        )
        for site in space.sites
    )
