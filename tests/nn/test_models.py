import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from timm.layers import set_reentrant_ckpt
from torch import Tensor, nn

from octnas import Architecture, OctaveConv2d, octavize
from octnas.errors import ArchitectureError, UnsupportedModelError
from octnas.nn import build
from octnas.nn.models import ThumbnailResNet
from octnas.nn.octave import resplit
from tests.nn.reference import assert_sizeable, images, randomise

ARCHITECTURE = Architecture(
    "thumbnail_resnet",
    (1, 16, 16),
    {"layer1": 0.5, "layer2.0.conv1": 0.3, "layer2": 1.0},
    backbone_args={"layers": [1, 2], "channels": [8, 12], "num_classes": 7, "in_chans": 1},
    channel_multiple=2,
    stride_mode="paper",
)


def thumbnail(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model("thumbnail_resnet", **kwargs)).eval()


@pytest.mark.parametrize(
    ("kwargs", "classes", "features"),
    [
        ({}, 1000, 64),
        ({"num_classes": 10}, 10, 64),
        ({"layers": (1,), "channels": (8,)}, None, 0),
        ({"layers": (2,), "channels": (8,)}, 1000, 8),
        ({"layers": [1, 2], "channels": [8, 24], "num_classes": 5}, 5, 24),
        ({"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 32)}, 1000, 32),
        ({"in_chans": 1, "stem_stride": 2}, 1000, 64),
        ({"num_classes": 0}, 64, 64),
    ],
    ids=str,
)
def test_thumbnails_of_many_shapes(
    kwargs: dict[str, Any], classes: int | None, features: int
) -> None:
    if classes is None:
        with pytest.raises(ValueError, match="layers"):
            thumbnail(**kwargs)
        return
    model = thumbnail(**kwargs)
    x = images(2, kwargs.get("in_chans", 3), 32, 32)
    logits = model(x)
    assert_sizeable(logits)
    assert logits.shape == (2, classes)
    assert model.num_features == features
    assert isinstance(model, ThumbnailResNet)
    stages = len(kwargs.get("layers", (1, 1, 1)))
    side = 32 // kwargs.get("stem_stride", 1) // 2 ** (stages - 1)
    assert model.forward_features(x).shape == (2, features, side, side)


def test_the_default_is_resnet8() -> None:
    model = thumbnail(num_classes=10)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) + 1 == 8 + 2  # eight weighted layers, and two projections
    # 3×3 stem; a block of two convolutions per stage; projections; batch norms; classifier
    weights = 9 * (3 * 16 + 2 * 16 * 16 + (16 + 32) * 32 + (32 + 64) * 64) + 16 * 32 + 32 * 64
    norms = 2 * (16 + 2 * 16 + 3 * 32 + 3 * 64)
    assert sum(p.numel() for p in model.parameters()) == weights + norms + 64 * 10 + 10


def test_the_stem_is_initialised_as_timm_does() -> None:
    """Kaiming, fan out: a standard deviation of √(2 / (9 · channels))."""
    model = thumbnail(channels=(64, 64, 64))
    assert model.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_features_are_as_announced(stem_stride: int) -> None:
    x = images(1, 3, 32, 32)
    model = thumbnail(features_only=True, stem_stride=stem_stride)
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert channels == [16, 16, 32, 64]
    for feature, count, reduction in zip(model(x), channels, reductions, strict=True):
        assert feature.shape == (1, count, 32 // reduction, 32 // reduction)
    some = thumbnail(features_only=True, stem_stride=stem_stride, out_indices=(1, 3))
    assert [feature.shape[1] for feature in some(x)] == [16, 64]


def test_intermediates() -> None:
    model, x = thumbnail(), images(1, 3, 16, 16)
    last, found = model.forward_intermediates(x)
    assert_sizeable(last)
    assert [tuple(f.shape[1:]) for f in found[:4]] == [
        (16, 16, 16),
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
    ]
    assert torch.equal(model.forward_head(last), model(x))


@pytest.mark.parametrize("name", ["resnet18", "thumbnail_resnet"])
def test_gradient_checkpointing(name: str) -> None:
    """Through octave feature maps, whose parts the checkpoints must not lose."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, zero_init_last=False)
        octavize(model, {"*": 0.5}).train()
        model.set_grad_checkpointing(checkpointing)
        model(images(2, 3, 32, 32)).square().sum().backward()
        gradients.append(model.conv1.weight.grad)
    assert_sizeable(*gradients)
    torch.testing.assert_close(*gradients)


@pytest.fixture
def _reentrant() -> Iterator[None]:
    set_reentrant_ckpt(True)
    yield
    set_reentrant_ckpt(False)


@pytest.mark.usefixtures("_reentrant")
@pytest.mark.parametrize("copies", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_reentrant_checkpoints_are_refused(copies: Callable[[nn.Module], nn.Module]) -> None:
    """They know tensors alone, so that all gradients before them would be lost in silence."""
    model = copies(octavize(timm.create_model("resnet18", num_classes=10), {"layer2": 0.5}))
    model.set_grad_checkpointing(True)
    x = images(2, 3, 32, 32)
    with pytest.raises(UnsupportedModelError, match=r"set_reentrant_ckpt\(False\)"):
        model.train()(x)
    with torch.no_grad(), pytest.warns(UserWarning, match="None of the inputs"):
        assert model.eval()(x).shape == (2, 10)
    model.set_grad_checkpointing(False)
    model.train()(x).sum().backward()


@pytest.mark.usefixtures("_reentrant")
def test_reentrant_checkpoints_of_features_are_refused() -> None:
    net = timm.create_model("oct_resnet18", alphas=0.5, features_only=True)
    net.set_grad_checkpointing(True)
    with pytest.raises(UnsupportedModelError, match=r"set_reentrant_ckpt\(False\)"):
        net.train()(images(2, 3, 32, 32))


@pytest.mark.usefixtures("_reentrant")
def test_reentrant_checkpoints_of_plain_maps_pass() -> None:
    model = octavize(timm.create_model("resnet18", num_classes=10), 0.0).train()
    model.set_grad_checkpointing(True)
    model(images(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("classes", [None, 3])
def test_octnas_network_is_the_architecture(classes: int | None) -> None:
    document = json.loads(json.dumps(ARCHITECTURE.to_dict()))
    kwargs = {} if classes is None else {"num_classes": classes}
    model = timm.create_model("octnas_network", architecture=document, **kwargs).eval()
    twin = randomise(build(ARCHITECTURE, seed=0)).eval()
    state = twin.state_dict()
    if classes is not None:
        state = {
            key: value[:classes] if key[:3] == "fc." else value for key, value in state.items()
        }
    model.load_state_dict(state)
    x = images(2, 1, 16, 16)
    assert_sizeable(twin(x))
    torch.testing.assert_close(model(x), twin(x)[:, :classes])
    for name, module in model.named_modules():
        if isinstance(module, OctaveConv2d):
            other = twin.get_submodule(name)
            assert module.low_channels == other.low_channels
            assert module.stride_mode == other.stride_mode == "paper"
    assert model.pretrained_cfg["first_conv"] == "conv1"
    assert model.pretrained_cfg["classifier"] == "fc"


@pytest.mark.parametrize(
    ("backbone", "args", "count"),
    [
        ("thumbnail_resnet", {}, 4),
        ("thumbnail_resnet", {"layers": [1, 2], "channels": [8, 12]}, 3),
        ("resnet18", {"channels": [8, 8, 16, 16]}, 5),
    ],
    ids=str,
)
def test_features_of_an_octnas_network_are_plain_tensors(
    backbone: str, args: dict[str, Any], count: int
) -> None:
    architecture = Architecture(backbone, (3, 64, 64), {"stem": 0.5, "layer2": 0.5, "layer1": 1.0})
    document = {**architecture.to_dict(), "backbone_args": args}
    model = randomise(timm.create_model("octnas_network", architecture=document)).eval()
    net = timm.create_model("octnas_network", architecture=document, features_only=True).eval()
    assert not net.load_state_dict(model.state_dict(), strict=False).missing_keys
    x = images(2, 3, 33, 43)
    found, (_, expected) = net(x), model.forward_intermediates(x)
    assert len(found) == count
    assert [f.shape[1] for f in found] == net.feature_info.channels()
    for feature, wanted in zip(found, expected[:count], strict=True):
        assert isinstance(feature, Tensor)
        assert_sizeable(feature)
        assert torch.equal(feature, resplit(wanted, 0))
    some = timm.create_model(
        "octnas_network", architecture=document, features_only=True, out_indices=(1, 2)
    )
    assert [f.shape[1] for f in some(x)] == net.feature_info.channels()[1:3]


@pytest.mark.parametrize("kind", ["getter", "hook", "fx", "dict"])
def test_other_kinds_of_features_of_an_octnas_network_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"feature_cls: found '{kind}'"):
        timm.create_model(
            "octnas_network",
            architecture=ARCHITECTURE.to_dict(),
            features_only=True,
            feature_cls=kind,
        )


def test_octnas_network_refuses_a_malformed_architecture() -> None:
    with pytest.raises(ArchitectureError, match="schema"):
        timm.create_model("octnas_network", architecture={"backbone": "resnet18"})


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("name", ["thumbnail_resnet", "resnet18"])
def test_octave_networks_can_be_pickled_and_copied(name: str) -> None:
    torch.manual_seed(0)
    model = octavize(randomise(timm.create_model(name, num_classes=5)), {"*": 0.5, "layer2": 1.0})
    x = images(1, 3, 32, 32)
    assert_sizeable(logits(model, x))
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(logits(other, x), logits(model, x))
        assert all(a is not b for a, b in zip(model.parameters(), other.parameters(), strict=True))
