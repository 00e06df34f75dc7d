"""The models that importing `octnas.nn` registers with timm."""

from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from octnas.architecture import Architecture
from octnas.errors import require
from octnas.nn.backbone import create_backbone
from octnas.nn.octavize import octavize

__all__ = ["ThumbnailResNet"]


class ThumbnailResNet(ResNet):
    """A ResNet for small images: a 3×3 stem without pooling, then timm's basic blocks.

    The layout of He et al. (arXiv 1512.03385, §4.2) for CIFAR-10, with up to four stages.

    Args:
        layers: blocks per stage.
        channels: width per stage; the stem has that of the first.
        stem_stride: 1, or 2 for images of 64 pixels and more.
        **kwargs: those of ``timm.models.resnet.ResNet``.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (1, 1, 1),
        channels: tuple[int, ...] = (16, 32, 64),
        stem_stride: int = 1,
        **kwargs: Any,
    ) -> None:
        require(
            len(layers) == len(channels) <= 4 and sum(layers) > 1,
            "layers",
            tuple(layers),
            f"as many stages as channels {tuple(channels)}, four at most; two blocks or more",
        )
        require(
            channels[0] % 2 == 0, "channels", tuple(channels), "an even width of the first stage"
        )
        # A deep stem is the only one whose width timm lets one choose; it is replaced below.
        super().__init__(
            block=BasicBlock,
            layers=tuple(layers),
            channels=tuple(channels),
            stem_type="deep",
            stem_width=channels[0] // 2,
            **kwargs,
        )
        self.conv1 = nn.Conv2d(
            self.in_chans, channels[0], 3, stride=stem_stride, padding=1, bias=False
        )
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for stage in range(len(layers), 4):
            # timm's forward passes through four stages by name.
            setattr(self, f"layer{stage + 1}", nn.Identity())
        for index, info in enumerate(self.feature_info):
            info["reduction"] = stem_stride * 2 ** max(0, index - 1)


@register_model  # type: ignore[untyped-decorator]
def thumbnail_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A `ThumbnailResNet`; by default ResNet-8, three stages of one block, widths 16/32/64."""
    return build_model_with_cfg(
        ThumbnailResNet,
        "thumbnail_resnet",
        pretrained,
        feature_cfg={"out_indices": tuple(range(len(kwargs.get("layers", (1, 1, 1))) + 1))},
        **_default_cfg(kwargs),
    )


@register_model  # type: ignore[untyped-decorator]
def octnas_network(
    pretrained: bool = False, *, architecture: Mapping[str, Any], **kwargs: Any
) -> nn.Module:
    """The network of an `Architecture` document; what an exported folder names in its config.

    Args:
        pretrained: load the weights that the pretrained config names.
        architecture: what `Architecture.to_dict` gives.
        **kwargs: arguments of the backbone that replace those of the architecture, such as
            ``num_classes``.
    """
    found = Architecture.from_dict(architecture)

    def build(**overrides: Any) -> nn.Module:
        return octavize(create_backbone(found.backbone, overrides), found)

    # All of them by name, since timm takes what is missing from its own defaults.
    kwargs = {"in_chans": found.input_size[0], **found.backbone_args, **kwargs}
    model: nn.Module = build_model_with_cfg(
        build, "octnas_network", pretrained, **_default_cfg(kwargs)
    )
    return model


def _default_cfg(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Add what timm wants to know of a model that has no published weights."""
    if kwargs.get("pretrained_cfg") is None:
        kwargs["pretrained_cfg"] = {"first_conv": "conv1", "classifier": "fc"}
    return kwargs
