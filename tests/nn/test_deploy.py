"""`octnas.deploy` computes what its source computes, with folded norms and kernels of its own.

Deployed networks, compiled and exported.
"""

import copy
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.export import ExportedProgram

from octnas import OctaveConv2d, deploy, octavize
from octnas.errors import UnsupportedModelError
from octnas.nn.deploy import DeployedBlock, DeployedConv
from tests.nn.families import FAMILIES, SMALL, arguments, create, random_alphas, size_of
from tests.nn.reference import assert_sizeable, images, randomise

# Tolerances relative to the largest logit.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}
FAST = ("ResNeXt", "SE-ResNeXt-T", "depthwise", "blurred", "RS")
EVERYWHERE = (0.0, 0.3, 1.0)


def some(*fast: str) -> list[Any]:
    """All families, the named ones by default and the others among the slow tests."""
    others = (pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n not in fast)
    return [*fast, *others]


def network(name: str, seed: int = 1, stride_mode: str = "timm", **kwargs: Any) -> nn.Module:
    model = create(name, **kwargs)
    alphas = random_alphas(model, seed)
    return octavize(model, alphas, stride_mode=stride_mode).eval()  # type: ignore[arg-type]


@torch.no_grad()
def check_same(found: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Equal up to rounding, as a share of the largest logit, and large enough to say so."""
    assert_sizeable(expected)
    assert found.dtype == expected.dtype
    allowed = ROUNDING[expected.dtype] if tolerance is None else tolerance
    assert (found - expected).abs().max() <= allowed * expected.abs().max()


@torch.no_grad()
def check_deployed(model: nn.Module, *shape: int) -> nn.Module:
    """A deployed network, once it agrees with its source in eval mode."""
    dtype = next(model.parameters()).dtype
    x, fixed = images(*shape, dtype=dtype), deploy(model)
    check_same(fixed(x), copy.deepcopy(model).eval()(x))
    return fixed


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stride_mode", ["timm", "paper"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_computes_what_its_source_computes(name: str, stride_mode: str, seed: int) -> None:
    """In float64, where a wrong path or a lost epsilon cannot hide behind rounding."""
    model = network(name, seed, stride_mode).double()
    check_deployed(model, 2, 3, *size_of(name))


@pytest.mark.parametrize("alpha", EVERYWHERE)
@pytest.mark.parametrize("name", some(*FAST))
def test_one_alpha_everywhere(name: str, alpha: float) -> None:
    """α = 1 leaves no high channel anywhere, 0 no low one; in float32."""
    model = octavize(create(name), {"*": alpha}).eval()
    check_deployed(model, 2, 3, *size_of(name))


@pytest.mark.parametrize("size", [(64, 64), (61, 33), (33, 62)])
@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnet50"])
def test_even_and_odd_images(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **{**SMALL, "layers": (2, 1, 1, 1)}))
    octavize(model, 0.5, channel_multiple=2)
    check_deployed(model.eval(), 1, 3, *size)


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_timm_models(name: str) -> None:
    """They are taken as they are, and stay plain themselves."""
    model = create(name).eval()
    kinds = [type(module) for module in model.modules()]
    fixed = check_deployed(model, 2, 3, *size_of(name))
    assert [type(module) for module in model.modules()] == kinds
    assert not any(isinstance(module, OctaveConv2d) for module in fixed.modules())


@pytest.mark.parametrize("activates", [False, True])
@pytest.mark.parametrize("name", ["basic", "ResNeXt", "D"])
def test_batch_norms_that_activate(name: str, activates: bool) -> None:
    norm_layer = partial(BatchNormAct2d, apply_act=activates, act_layer=nn.SiLU)
    model = create(name, norm_layer=norm_layer)
    assert any(isinstance(module, BatchNormAct2d) for module in model.modules())
    octavize(model, random_alphas(model, 1)).double().eval()
    check_deployed(model, 2, 3, *size_of(name))


@pytest.mark.parametrize("name", ["basic", "SE", "depthwise"])
def test_stem_whose_pool_is_a_convolution(name: str) -> None:
    model = create(name, replace_stem_pool=True)
    alphas = random_alphas(model, 0)
    assert "stem.pool" in alphas
    for alpha in EVERYWHERE:
        twin = octavize(copy.deepcopy(model), alphas | {"stem.pool": alpha})
        check_deployed(twin.double().eval(), 2, 3, *size_of(name))


@pytest.mark.parametrize("octave", [False, True])
def test_norms_without_affine_parameters_or_statistics(octave: bool) -> None:
    """Without statistics a norm cannot be folded; it computes its own, as its source does."""
    without_affine = create("basic", norm_layer=partial(nn.BatchNorm2d, affine=False))
    without_stats = create("basic", norm_layer=partial(nn.BatchNorm2d, track_running_stats=False))
    for model in (without_affine, without_stats):
        if octave:
            octavize(model, random_alphas(model, 1))
        check_deployed(model.double().eval(), 4, 3, 65, 59)


@pytest.mark.parametrize("name", ["basic", "SE", "ResNeXt"])
def test_convolutions_with_a_bias(name: str) -> None:
    """The norm's shift and the convolution's own bias go into one, and into no path twice."""
    model = create(name).double()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(images(module.out_channels, dtype=torch.float64))
    octavize(model, random_alphas(model, 1)).eval()
    check_deployed(model, 2, 3, *size_of(name))


@pytest.mark.parametrize("name", ["ResNeXt", "blurred", "SE"])
def test_the_source_is_left_as_it_is(name: str) -> None:
    model = network(name, drop_path_rate=0.5, drop_rate=0.5, drop_block_rate=0.2).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    kinds = {key: (type(m), m.training) for key, m in model.named_modules()}
    low = {k: m.low_channels for k, m in model.named_modules() if isinstance(m, OctaveConv2d)}
    fixed = check_deployed(model, 2, 3, *size_of(name))
    assert {key: (type(m), m.training) for key, m in model.named_modules()} == kinds
    assert low == {
        k: m.low_channels for k, m in model.named_modules() if isinstance(m, OctaveConv2d)
    }
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert all(parameter.requires_grad for parameter in model.parameters())
    shared = {p.data_ptr() for p in fixed.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared


@pytest.mark.parametrize("name", ["basic", "D", "ResNeXt", "blurred", "SENet"])
def test_nothing_of_training_is_left(name: str) -> None:
    model = network(name, drop_path_rate=0.5, drop_rate=0.5, drop_block_rate=0.2).train()
    fixed = deploy(model)
    assert not any(module.training for module in fixed.modules())
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    # Channel attention, which is not a convolution of feature maps, may have norms of its own.
    left = [k for k, m in fixed.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [key for key in left if ".after." not in key]
    assert not any(isinstance(module, OctaveConv2d) for module in fixed.modules())
    assert isinstance(fixed.layer1[0], DeployedBlock)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_path_has_a_kernel_of_its_own(name: str) -> None:
    model = network(name)
    fixed = deploy(model)
    deployed = [m for m in fixed.modules() if isinstance(m, DeployedConv)]
    convs = [m for m in model.modules() if isinstance(m, OctaveConv2d)]
    assert len(deployed) == len(convs)
    storages = set()
    for layer, source in zip(deployed, convs, strict=True):
        paths = [path for path in layer.children() if isinstance(path, nn.Conv2d)]
        for path in paths:
            weight = path.weight
            assert weight.is_contiguous()
            assert weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()
            storages.add(weight.untyped_storage().data_ptr())
        # Together they hold the source's kernel, each weight once, and one bias per channel.
        assert sum(path.weight.numel() for path in paths) == source.weight.numel()
        assert sum(p.bias.numel() for p in paths if p.bias is not None) == source.out_channels
    assert len(storages) == sum(len(list(layer.children())) for layer in deployed)


def test_pickled_and_copied() -> None:
    model = network("SE-ResNeXt-T")
    x, fixed = images(2, 3, 37, 43), deploy(model)
    file = io.BytesIO()
    torch.save(fixed, file)
    file.seek(0)
    for twin in (copy.deepcopy(fixed), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), fixed(x))
    reordered = deploy(network("SE-ResNeXt-T"))
    reordered.load_state_dict(fixed.state_dict())
    assert torch.equal(reordered(x), fixed(x))


@pytest.mark.parametrize("name", [*FAST, "thumbnail"])
def test_images_are_not_written_to(name: str) -> None:
    """Sums grow in place; none of them may be the image, nor a result given before."""
    x = images(2, 3, *size_of(name))
    before, fixed = x.clone(), deploy(network(name))
    first = fixed(x)
    kept = first.clone()
    assert torch.equal(fixed(x), kept)
    assert torch.equal(x, before)
    assert torch.equal(first, kept)
    features = fixed.forward_features(x)
    assert features is not x


@pytest.mark.parametrize("name", [*FAST, "basic"])
def test_channels_last_and_bfloat16(name: str) -> None:
    model = network(name)
    x = images(2, 3, *size_of(name))
    expected, fixed = model(x).detach(), deploy(model)
    check_same(deploy(model.to(memory_format=torch.channels_last))(x), expected)
    fixed, x = fixed.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    check_same(fixed(x), expected)
    lowered = fixed.bfloat16()(x.bfloat16())
    assert lowered.dtype == torch.bfloat16
    # Eight bits of mantissa, through some twenty layers.
    assert (lowered.float() - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vit_tiny_patch16_224", {}, "allowed: timm's ResNets"),
        ("resnet18", {**SMALL, "act_layer": nn.RReLU}, "found a RReLU"),
        ("resnet50_gn", {**SMALL, "channels": (32, 32, 32, 32)}, "found a GroupNorm"),
        ("resnet18", {**SMALL, "global_pool": "", "num_classes": 0}, "no global pooling"),
    ],
)
def test_it_refuses_what_octavize_refuses(name: str, kwargs: dict[str, Any], message: str) -> None:
    model = timm.create_model(name, **kwargs)
    with pytest.raises(UnsupportedModelError, match=message):
        octavize(copy.deepcopy(model), 0.5)
    with pytest.raises(UnsupportedModelError, match=message):
        deploy(model)


def test_a_deployed_network_is_refused() -> None:
    fixed = deploy(network("thumbnail"))
    with pytest.raises(UnsupportedModelError, match="is deployed already"):
        deploy(fixed)
    with pytest.raises(UnsupportedModelError, match="a deployed network keeps its α"):
        octavize(fixed, 0.5)


def test_timm_names_the_families() -> None:
    """The families that are deployed here are those that a user asks timm for."""
    backbones = {arguments(name)[0] for name in FAMILIES}
    wanted = {"resnet18", "resnet50", "resnext50_32x4d", "seresnet50", "ecaresnet50d", "resnet50d"}
    assert wanted <= backbones


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", some("SE-ResNeXt-T"))
def test_compiled_and_exported(name: str) -> None:
    """The sums stand in another order there, and the graph splits nothing."""
    model = network(name)
    x, fixed = images(2, 3, *size_of(name)), deploy(model)
    expected = model(x).detach()
    compiled = torch.compile(fixed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        check_same(compiled(x), expected)
        program = torch.export.export(fixed, (x,))
        check_same(program.module()(x), expected)
    # Kernels meet nothing but convolutions, as ECA's do, and the classifier.
    weights = set(program.graph_signature.inputs_to_parameters)
    called = {
        str(node.target)
        for node in program.graph.nodes
        if weights & {source.name for source in node.all_input_nodes}
    }
    assert "aten.conv2d.default" in called
    assert called <= {f"aten.{kind}.default" for kind in ("conv1d", "conv2d", "linear")}


def upsampled_channels(program: ExportedProgram) -> set[int]:
    nodes = [n for n in program.graph.nodes if "upsample_nearest2d" in str(n.target)]
    return {node.meta["val"].shape[1] for node in nodes}


def test_exported_it_upsamples_few_channels_before_a_convolution_to_many() -> None:
    """Stage 1 of a ResNet-50 at α = .5: conv3 takes 32 low channels to 128 high ones."""
    model = octavize(randomise(timm.create_model("resnet50", layers=(2, 1, 1, 1))), 0.5).eval()
    x, fixed = images(1, 3, 61, 64), deploy(model)
    with torch.no_grad():
        program = torch.export.export(fixed, (x,))
        found, expected = program.module()(x), fixed(x)
        check_same(found, expected)
    # What conv1, conv2 and conv3 of stages 1 to 3 upsample: 32, 64 and 128 channels, but for the
    # 512 of stage 3's conv3, which would read 128, too many.
    assert upsampled_channels(program) == {32, 64, 128, 512}
