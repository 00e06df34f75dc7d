"""What octave feature maps cannot pass through is refused by name, before anything is changed."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropBlock2d, GatherExcite, SEModule, freeze_batch_norm_2d
from timm.models.resnet import ResNet
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from octnas import octavize
from octnas.errors import OctnasError, UnsupportedModelError
from octnas.nn.shapes import search_space
from tests.nn.families import create, fingerprint

ATTENTION = ["gc", "gca", "cbam", "lcbam", "ceca", "coord", "nl"]


def check_refused(model: nn.Module, message: str) -> None:
    before = fingerprint(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError) as caught:
        octavize(model, 0.5)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert fingerprint(model) == before
    for key, value in model.state_dict().items():
        assert value.is_meta or torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mobilenetv3_small_050", {}, "MobileNetV3"),
        ("vit_tiny_patch16_224", {}, "VisionTransformer"),
        ("resnetv2_50", {}, "ResNetV2"),
        ("skresnet18", {}, "layer1.0: found a SelectiveKernelBasic"),
        ("res2net50_26w_4s", {}, "layer1.0: found a Bottle2neck"),
        ("resnest14d", {}, "layer1.0: found a ResNestBottleneck"),
        ("resnet50_gn", {}, "bn1: found a GroupNorm"),
        ("resnet18", {"norm_layer": "groupnorm"}, "bn1: found a GroupNorm"),
        ("resnet18", {"norm_layer": "layernorm2d"}, "bn1: found a LayerNorm2d"),
        ("resnet18", {"act_layer": "prelu"}, "act1: found a PReLU"),
        ("resnet18", {"act_layer": "elu"}, "act1: found a ELU"),
        ("resnet18", {"global_pool": ""}, "global_pool: found no global pooling"),
        *(
            ("resnet50", {"block_args": {"attn_layer": kind}}, "layer1.0.se: found a ")
            for kind in ATTENTION
        ),
    ],
)
def test_other_models_are_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        check_refused(timm.create_model(name, **kwargs), message)


def grouped_first(model: ResNet) -> None:
    model.layer1[0].conv1 = nn.Conv2d(64, 8, 1, groups=2, bias=False)


def grouped_last(model: ResNet) -> None:
    model.layer2[0].conv3 = nn.Conv2d(12, 48, 1, groups=4, bias=False)


def grouped_shortcut(model: ResNet) -> None:
    model.layer2[0].downsample[0] = nn.Conv2d(32, 48, 1, 2, groups=2, bias=False)


def grouped_stem(model: ResNet) -> None:
    model.conv1 = nn.Conv2d(3, 63, 7, 2, 3, groups=3, bias=False)


def depthwise_shortcut(model: ResNet) -> None:
    model.layer1[0].downsample[0] = nn.Conv2d(64, 64, 1, groups=64, bias=False)


def another_norm(model: ResNet) -> None:
    model.layer3[0].bn2 = nn.InstanceNorm2d(16)  # type: ignore[assignment]


def noise(model: ResNet) -> None:
    model.layer3[0].drop_block = DropBlock2d(0.1, 3, with_noise=True)


def alpha_dropout(model: ResNet) -> None:
    model.layer3[0].drop_block = nn.AlphaDropout(0.1)


def prelu(model: ResNet) -> None:
    model.layer4[0].act3 = nn.PReLU()


def gather_excite(model: ResNet) -> None:
    model.layer1[0].se = GatherExcite(32, use_mlp=False)


def own_attention(model: ResNet) -> None:
    class Own(SEModule):
        """Of which nothing is known."""

    model.layer1[0].se = Own(32)


def own_conv(model: ResNet) -> None:
    class Own(nn.Conv2d):
        """Of which nothing is known."""

    model.layer1[0].conv2 = Own(8, 8, 3, padding=1, bias=False)


def more_convs(model: ResNet) -> None:
    model.layer1[0].drop_block = nn.Conv2d(8, 8, 1)


def parametrised(model: ResNet) -> None:
    weight_norm(model.layer2[0].conv2)


def even_kernel(model: ResNet) -> None:
    model.layer2[0].conv2 = nn.Conv2d(12, 12, 2, 2, bias=False)


def asymmetric_stride(model: ResNet) -> None:
    model.layer2[0].conv2 = nn.Conv2d(12, 12, 3, (2, 1), 1, bias=False)


def mirrored(model: ResNet) -> None:
    model.layer4[0].conv2 = nn.Conv2d(24, 24, 3, 2, 1, bias=False, padding_mode="reflect")


CHANGES: dict[Callable[[ResNet], None], str] = {
    grouped_first: "layer1.0.conv1: found a convolution of 2 groups",
    grouped_last: "layer2.0.conv3: found a convolution of 4 groups",
    grouped_shortcut: "layer2.0.downsample.0: found a convolution of 2 groups",
    grouped_stem: "conv1: found a convolution of 3 groups",
    depthwise_shortcut: "layer1.0.downsample.0: found a convolution of 64 groups",
    another_norm: "layer3.0.bn2: found a InstanceNorm2d",
    noise: "layer3.0.drop_block: found DropBlock2d with noise",
    alpha_dropout: "layer3.0.drop_block: found a AlphaDropout",
    prelu: "layer4.0.act3: found a PReLU",
    gather_excite: "layer1.0.se: found a GatherExcite",
    own_attention: "layer1.0.se: found a Own",
    own_conv: "layer1.0.conv2: found a Own",
    more_convs: "layer1.0.drop_block: found a Conv2d that no site covers",
    parametrised: "layer2.0.conv2: found a ParametrizedConv2d",
    even_kernel: "layer2.0.conv2: found kernel (2, 2)",
    asymmetric_stride: "layer2.0.conv2: found stride (2, 1)",
    mirrored: "layer4.0.conv2: found stride (2, 2), padding mode 'reflect'",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_no_resnet_has_is_refused(change: Callable[[ResNet], None]) -> None:
    model = create("bottleneck")
    change(model)
    check_refused(model, CHANGES[change])


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (nn.SyncBatchNorm.convert_sync_batchnorm, "bn1: found a SyncBatchNorm"),
        (freeze_batch_norm_2d, "bn1: found a FrozenBatchNorm2d"),
    ],
)
def test_other_batch_norms_are_refused(
    convert: Callable[[nn.Module], nn.Module], message: str
) -> None:
    check_refused(convert(create("bottleneck")), message)


def test_what_cannot_be_octavized_is_found_before_alphas_are_read() -> None:
    model = create("bottleneck")
    prelu(model)
    before = fingerprint(model)
    with pytest.raises(OctnasError):
        octavize(model, {"nowhere": 0.5})
    assert fingerprint(model) == before


def test_an_octave_network_is_refused() -> None:
    model = octavize(create("SE-ResNeXt-T"), 0.5)
    before = [module.low_channels for module in model.modules() if hasattr(module, "low_channels")]
    check_refused(model, "conv1.0: is an octave convolution already")
    after = [module.low_channels for module in model.modules() if hasattr(module, "low_channels")]
    assert before == after


@pytest.mark.parametrize("model", [nn.Linear(1, 1), nn.Sequential(nn.Conv2d(3, 8, 3))])
def test_what_is_no_timm_model_is_refused(model: nn.Module) -> None:
    with pytest.raises(OctnasError, match=type(model).__name__):
        octavize(model, 0.5)


@pytest.mark.parametrize("kind", ATTENTION[:3])
def test_a_search_refuses_the_same(kind: str) -> None:
    args = {"block_args": {"attn_layer": kind}}
    with pytest.raises(UnsupportedModelError, match=r"layer1\.0\.se"):
        search_space("resnet50", (3, 64, 64), (0.0, 0.5), backbone_args=args)
