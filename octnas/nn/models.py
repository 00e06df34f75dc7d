"""The models that importing `octnas.nn` registers with timm."""

from collections.abc import Mapping
from typing import Any

from timm.models import FeatureListNet, build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from octnas.errors import UnsupportedModelError, require
from octnas.nn.backbone import check_backbone_args, create_model
from octnas.nn.channel_order import first_channels, take_channels
from octnas.nn.octave import resplit
from octnas.nn.octavize import Alphas, octavize, refuse_reentrant
from octnas.space.architecture import Architecture, StrideMode

__all__ = ["OctaveFeatures", "ThumbnailResNet"]

# Registered with timm as `oct_…`.
BACKBONES = (
    *("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnet50d", "resnet101d", "resnet152d", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152", "seresnet152d"),
    *("seresnext50_32x4d", "seresnext101_32x4d", "ecaresnet50d", "ecaresnet101d"),
)


class ThumbnailResNet(ResNet):
    """A ResNet for small images: a 3×3 stem without pooling, then timm's basic blocks.

    He et al.'s layout for CIFAR-10 (arXiv 1512.03385, §4.2), with up to four stages.

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
        # timm only lets one choose the width of a deep stem; it is replaced below.
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
            # timm's forward calls four stages by name.
            setattr(self, f"layer{stage + 1}", nn.Sequential())
        for index, info in enumerate(self.feature_info):
            info["reduction"] = stem_stride * 2 ** max(0, index - 1)


@register_model  # type: ignore[untyped-decorator]
def thumbnail_resnet(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A `ThumbnailResNet`; by default ResNet-8, three stages of one block, widths 16/32/64."""
    return build_model_with_cfg(
        ThumbnailResNet,
        "thumbnail_resnet",
        pretrained,
        feature_cfg={"out_indices": _thumbnail_levels(kwargs)},
        **_default_cfg(kwargs),
    )


def _thumbnail_levels(kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The feature maps of a `ThumbnailResNet`: the stem's and one per stage."""
    return tuple(range(len(kwargs.get("layers", (1, 1, 1))) + 1))


@register_model  # type: ignore[untyped-decorator]
def pruned_resnet(
    pretrained: bool = False, *, backbone: str, widths: Mapping[str, int], **kwargs: Any
) -> ResNet:
    """A timm ResNet with fewer channels, see `octnas.nn.pruned`.

    Args:
        pretrained: not allowed.
        backbone: name of the timm ResNet.
        widths: channels by site, 1 to the backbone's; others are kept. Tied sites (see
            `octnas.nn.channel_order`) have the same, and groups of channels are equally large.
        **kwargs: of the backbone.
    """
    require(not pretrained, "pretrained", pretrained, "False for a pruned network")
    model: ResNet = create_model(backbone, kwargs)
    orders = first_channels(model, widths)
    take_channels(model, orders)
    *_, last = orders.values()
    model.num_features = len(last)
    model.head_hidden_size = model.num_features * model.global_pool.feat_mult()
    stem = [site for site in orders if site.startswith("stem") and site != "stem.pool"]
    for info in model.feature_info:
        info["num_chs"] = len(orders.get(info["module"], orders[stem[-1]]))
    return model


@register_model  # type: ignore[untyped-decorator]
def octnas_network(
    pretrained: bool = False, *, architecture: Mapping[str, Any], **kwargs: Any
) -> nn.Module:
    """The network of an `Architecture` document; exported folders name this model.

    Args:
        pretrained: load the weights that the pretrained config names.
        architecture: see `Architecture.to_dict`.
        **kwargs: of the backbone; they override the architecture's, such as ``num_classes``.
    """
    found = Architecture.from_dict(architecture)
    # The caller may pass a device and the like, a document may not.
    check_backbone_args(found.backbone_args)

    def build(**overrides: Any) -> nn.Module:
        return octavize(create_model(found.backbone, overrides), found)

    # All of them by name, since timm fills in its own defaults.
    kwargs = {"in_chans": found.input_size[0], **found.backbone_args, **kwargs}
    features = _feature_cfg(kwargs)
    if "thumbnail_resnet" in (found.backbone, kwargs.get("backbone")):
        features["out_indices"] = _thumbnail_levels(kwargs)
    model: nn.Module = build_model_with_cfg(
        build, "octnas_network", pretrained, feature_cfg=features, **_default_cfg(kwargs)
    )
    return model


class OctaveFeatures(FeatureListNet):
    """The stages' feature maps as plain tensors, with low channels upsampled."""

    def forward(self, x: Tensor) -> list[Tensor]:
        refuse_reentrant(self)
        return [resplit(found, 0) for found in super().forward(x)]  # type: ignore[misc]


def _feature_cfg(kwargs: dict[str, Any]) -> dict[str, Any]:
    """timm's ``feature_cfg``; removes ``feature_cls`` from ``kwargs`` if features are requested.

    Raises:
        UnsupportedModelError: a ``feature_cls`` that would return or trace octave tensors.
    """
    if kwargs.get("features_only"):
        kind = kwargs.pop("feature_cls", "list")
        if kind not in ("list", OctaveFeatures):
            name = kind.__name__ if isinstance(kind, type) else kind
            raise UnsupportedModelError(
                f"feature_cls: found {name!r}, allowed: 'list', the feature maps as plain tensors"
            )
    return {"feature_cls": OctaveFeatures}


def _octave(
    backbone: str,
    pretrained: bool,
    *,
    alphas: Alphas = 0.125,
    channel_multiple: int = 1,
    stride_mode: StrideMode = "timm",
    **kwargs: Any,
) -> nn.Module:
    """A timm ResNet as an octave network, with any arguments of ``timm.create_model``."""

    def build(**overrides: Any) -> nn.Module:
        return octavize(
            create_model(backbone, overrides),
            alphas,
            channel_multiple=channel_multiple,
            stride_mode=stride_mode,
        )

    # By the backbone's name timm finds its pretrained weights; the keys are the same.
    model: nn.Module = build_model_with_cfg(
        build, backbone, pretrained, feature_cfg=_feature_cfg(kwargs), **kwargs
    )
    return model


def _register(backbone: str) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _octave(backbone, pretrained, **kwargs)

    create.__name__ = f"oct_{backbone}"
    create.__doc__ = f"""timm's ``{backbone}`` as an octave network.

    Args:
        pretrained: load timm's weights, which fit every α and were trained at α = 0.
        **kwargs: of the backbone, and ``alphas``, ``channel_multiple`` and ``stride_mode`` of
            `octnas.octavize`; α is 0.125 by default, the paper's most accurate (table 4).
    """
    register_model(create)


for _backbone in BACKBONES:
    _register(_backbone)


@register_model  # type: ignore[untyped-decorator]
def oct_seresnet152c(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The paper's headline network (table 6), as close as timm's modules allow.

    SE-ResNet-152 with a deep stem: 66.841 M parameters, 9.931 GMACs at 224 pixels and 20.258 at
    320. The paper's strides in the last 1×1 convolution of a block instead of the 3×3 one, and has
    66.8 M, 10.9 and 22.2. There are no published weights.
    """
    own = _default_cfg(kwargs, first_conv="conv1.0", test_input_size=(3, 320, 320))
    kwargs = {"stem_type": "deep", "stem_width": 32, "stride_mode": "paper", **own}
    return _octave("seresnet152", pretrained, **kwargs)


def _default_cfg(kwargs: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """Add the config that timm needs of a model without published weights."""
    if kwargs.get("pretrained_cfg") is None:
        kwargs["pretrained_cfg"] = {"first_conv": "conv1", "classifier": "fc", **entries}
    return kwargs
