"""Every ResNet that timm has: taken, with timm's keys at every α, copied, stored and costed."""

import copy
import io
import pickle
import re
from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octnas import OctaveConv2d, OctaveTensor, octavize
from octnas.nn import activate, subnet
from octnas.nn.backbone import create_backbone
from octnas.nn.layers import OctaveBlurPool2d
from octnas.nn.search_space import search_space
from tests.nn.families import FAMILIES, arguments, create, random_alphas, site_names, size_of
from tests.nn.reference import assert_sizeable, images

# Refused, see test_refusals.py.
GROUP_NORMED = "resnet50_gn"
TIMMS = [name for name in timm.list_models(module="resnet") if name != GROUP_NORMED]


def depth(name: str) -> int:
    """The number in a name: resnet50d has 50 layers."""
    found = re.search(r"\d+", name)
    return int(found.group()) if found else 0


def marked(deepest: int) -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] if depth(name) > deepest else [])
        for name in TIMMS
    ]


def test_timms_list_is_complete() -> None:
    """Whatever timm builds as a ResNet of its two blocks comes from one file."""
    assert len(TIMMS) >= 80
    with torch.device("meta"):
        for name in ("resnext26ts", "seresnext26ts", "regnetx_002", "resnetv2_50"):
            assert not isinstance(timm.create_model(name), ResNet)


@pytest.mark.parametrize("name", marked(deepest=50))
def test_keys_shapes_and_parameters_are_timms_at_any_alpha(name: str) -> None:
    with torch.device("meta"):
        twin = timm.create_model(name)
        model = octavize(timm.create_model(name), {"*": 0.0})
    wanted = [(key, value.shape, value.dtype) for key, value in twin.state_dict().items()]
    parameters = [(key, value.shape) for key, value in twin.named_parameters()]
    buffers = [key for key, _ in twin.named_buffers()]
    for alpha in (0.0, 0.125, 0.5, 1.0):
        activate(model, dict.fromkeys(site_names(twin), alpha))
        state = model.state_dict()
        assert [(key, value.shape, value.dtype) for key, value in state.items()] == wanted
        assert [(key, value.shape) for key, value in model.named_parameters()] == parameters
        assert [key for key, _ in model.named_buffers()] == buffers


@pytest.mark.parametrize("name", marked(deepest=18))
def test_a_training_step_of_every_model_passes(name: str) -> None:
    """In training mode, on the meta device, at timm's own image size."""
    with torch.device("meta"):
        model = octavize(timm.create_model(name), {"*": 0.5}).train()
        logits = model(torch.empty(2, *model.pretrained_cfg["input_size"]))
    assert logits.shape == (2, 1000)
    logits.sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.shape == parameter.shape, key


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_timm_checkpoint_loads_at_any_alpha(name: str, alpha: float) -> None:
    checkpoint = create(name).state_dict()
    torch.manual_seed(1)
    backbone, args = arguments(name)
    model = octavize(timm.create_model(backbone, **args), {"*": alpha}).eval()
    assert not torch.equal(model.fc.weight, checkpoint["fc.weight"])
    missing, unexpected = model.load_state_dict(checkpoint)
    assert not missing
    assert not unexpected
    x = images(1, 3, *size_of(name))
    expected = octavize(create(name).eval(), {"*": alpha})(x)
    assert_sizeable(expected)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_pickles_and_states(name: str) -> None:
    drops = {} if name == "thumbnail" else {"drop_path_rate": 0.1}
    model = create(name, **drops)
    octavize(model, random_alphas(model, 0)).eval()
    x = images(2, 3, *size_of(name))
    expected = model(x)
    assert_sizeable(expected)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    fresh = create(name, **drops)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    octavize(fresh, random_alphas(fresh, 0)).eval().load_state_dict(torch.load(stored))
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), fresh):
        assert torch.equal(other(x), expected)
        mine = {parameter.data_ptr() for parameter in model.parameters()}
        assert mine.isdisjoint(parameter.data_ptr() for parameter in other.parameters())
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize("name", FAMILIES)
def test_activating_is_octavizing_anew(name: str) -> None:
    """One supernet, several α one after another; 0 is timm's network again."""
    plain, supernet = create(name).eval(), octavize(create(name).eval(), {"*": 1.0})
    x = images(2, 3, *size_of(name))
    for seed in (0, 1):
        alphas = random_alphas(plain, seed)
        expected = octavize(create(name).eval(), alphas)(x)
        assert_sizeable(expected)
        assert torch.equal(subnet(supernet, alphas)(x), expected)
        activate(supernet, alphas)
        assert torch.equal(supernet(x), expected)
    activate(supernet, {})
    assert torch.equal(supernet(x), plain(x))


def blurring_flops(model: nn.Module) -> list[int]:
    """What the counter will see of filters that have no weights to learn, as the model runs."""
    counts: list[int] = []

    def note(module: Any, _inputs: object, y: Any) -> None:
        values = y.numel() if isinstance(y, Tensor) else y.high.numel() + y.low.numel()
        if not isinstance(y, Tensor) and not y.high.numel():
            values += y.high.shape[-2] * y.high.shape[-1]  # blurred once, for its size
        counts.append(2 * module.filt_size**2 * values)

    for module in model.modules():
        if isinstance(module, OctaveBlurPool2d):
            module.register_forward_hook(note)
    return counts


# The paper's strides by default in these only: each cuts its maps in another way.
IN_THE_PAPERS_MODE = ("basic", "D", "ResNeXt", "blurred")


@pytest.mark.parametrize("seeds", [(0, 1), pytest.param((2, 3), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    ("name", "multiple", "stride_mode"),
    [
        *((name, 1, "timm") for name in FAMILIES),
        *(
            pytest.param(
                *(name, 2, "paper"), marks=[pytest.mark.slow] * (name not in IN_THE_PAPERS_MODE)
            )
            for name in FAMILIES
        ),
    ],
)
def test_macs_are_what_torch_counts(
    name: str, multiple: int, stride_mode: Any, seeds: tuple[int, ...]
) -> None:
    backbone, args = arguments(name)
    size = (3, *size_of(name))
    space = search_space(
        backbone,
        size,
        (0.0, 0.5, 1.0),
        backbone_args=args,
        fixed={},
        channel_multiple=multiple,
        stride_mode=stride_mode,
    )
    for seed in seeds:
        model = create_backbone(backbone, args, meta=True).eval()
        alphas = random_alphas(model, seed) if seed else dict.fromkeys(site_names(model), 0.0)
        architecture = space.architecture(alphas)
        octavize(model, architecture)
        blurs = blurring_flops(model)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, *size, device="meta"))
        cost = space.cost(architecture)
        assert 2 * cost.macs == counter.get_total_flops() - sum(blurs)
        assert cost.params == space.params == sum(p.numel() for p in model.parameters())
        assert bool(blurs) == name.startswith("blurred")


@pytest.mark.parametrize("name", FAMILIES)
def test_activation_memory_is_the_convolutions_outputs(name: str) -> None:
    backbone, args = arguments(name)
    size = (3, *size_of(name))
    space = search_space(backbone, size, (0.0, 0.5), backbone_args=args, fixed={})
    model = create(name).eval()
    architecture = space.architecture(random_alphas(model, 1))
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: object, y: Any) -> None:
        outputs = [y.high, y.low] if isinstance(y, OctaveTensor) else [y]
        sizes.append(sum(part.numel() * part.element_size() for part in outputs))

    for module in octavize(model, architecture).modules():
        if isinstance(module, OctaveConv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, *size))
    assert len(sizes) == len(space.convs)
    assert space.cost(architecture).activation_bytes == sum(sizes)
