"""Tests."""

import copy
import pickle
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from octnas import Architecture, OctaveConv2d, OctaveTensor
from octnas.errors import ArchitectureError, OctnasError
from octnas.nn import activate, build, build_supernet, subnet
from octnas.nn.layers import OctaveBatchNorm2d
from octnas.nn.search_space import search_space
from octnas.nn.supernet import recalibrate
from tests.nn.reference import assert_sizeable, images, randomise

SPACE = search_space("thumbnail_resnet", (3, 16, 16), (0.0, 0.25, 0.5, 1.0))
MIXED = SPACE.architecture({"layer1": 0.5, "layer2.0.conv1": 1.0, "layer2": 0.25})
X = images(2, 3, 16, 16)


def supernet() -> nn.Module:
    return randomise(build_supernet(SPACE, seed=0)).eval()


def low_by_site(model: nn.Module) -> dict[str, int]:
    return {m.site: m.low_channels for m in model.modules() if isinstance(m, OctaveConv2d)}


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_all_architectures_start_at_the_same_point(alpha: float) -> None:
    vanilla = build(SPACE.uniform(0.0), seed=3).state_dict()
    for name, value in build(SPACE.uniform(alpha), seed=3).state_dict().items():
        assert torch.equal(value, vanilla[name]), name
    other = build(SPACE.uniform(alpha), seed=4).state_dict()
    assert not torch.equal(other["conv1.weight"], vanilla["conv1.weight"])
    assert_sizeable(vanilla["conv1.weight"], vanilla["layer3.0.conv2.weight"])


def test_building_leaves_the_random_states_alone() -> None:
    torch.manual_seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    build(MIXED, seed=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_building_does_not_depend_on_the_random_state() -> None:
    torch.manual_seed(1)
    first = build(MIXED, seed=0).state_dict()
    torch.manual_seed(2)
    second = build(MIXED, seed=0).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_supernet_begins_with_its_first_choices() -> None:
    space = search_space("thumbnail_resnet", (3, 16, 16), (0.25, 0.5))
    expected = space.quantize({})
    found = low_by_site(build_supernet(space, seed=0))
    assert found == {name: share * space.site[name].channels for name, share in expected.items()}


@pytest.mark.parametrize("architecture", [MIXED, dict(MIXED.alphas)], ids=["value", "mapping"])
def test_subnet_is_the_supernet_with_that_architecture(
    architecture: Architecture | dict[str, float],
) -> None:
    model = supernet()
    network = subnet(model, architecture)
    assert low_by_site(model) != low_by_site(network)
    vanilla = model(X)
    activate(model, architecture)
    assert low_by_site(model) == low_by_site(network)
    assert_sizeable(vanilla, model(X), vanilla - model(X))
    assert torch.equal(network(X), model(X))
    alone = build(MIXED, seed=1).eval()
    alone.load_state_dict(model.state_dict())
    assert torch.equal(alone(X), model(X))


def test_subnet_is_independent_of_the_supernet() -> None:
    model = supernet()
    network = subnet(model, MIXED)
    before, low = network(X), low_by_site(network)
    activate(model, SPACE.uniform(1.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.train()(X)
    assert low_by_site(network) == low
    assert torch.equal(network(X), before)


def test_activating_touches_no_weight_and_can_be_undone() -> None:
    model = supernet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vanilla = model(X)
    for architecture in (MIXED, SPACE.uniform(1.0), SPACE.uniform(0.0)):
        activate(model, architecture)
    assert torch.equal(model(X), vanilla)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_identity_shortcuts_follow() -> None:
    """ResNet-18's first block adds the stem's stream to that of stage 1."""
    architectures = [
        Architecture("resnet18", (3, 32, 32), alphas)
        for alphas in ({"stem": 0.5}, {"layer1": 0.5}, {"stem": 1.0, "layer1": 0.25}, {})
    ]
    model = randomise(build(architectures[0], seed=0)).eval()
    x = images(1, 3, 32, 32)
    for architecture in architectures:
        activate(model, architecture)
        twin = build(architecture, seed=0).eval()
        twin.load_state_dict(model.state_dict())
        assert_sizeable(model(x))
        assert torch.equal(model(x), twin(x))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"layer9": 0.5}, "unknown sites layer9; allowed: stem, "),
        ({"layer1": 1.5}, "1.5"),
        ({"layer1": float("nan")}, "nan"),
        (Architecture("x", (3, 16, 16), {}, channel_multiple=8), "channel_multiple"),
        (Architecture("x", (3, 16, 16), {}, stride_mode="paper"), "stride_mode"),
    ],
    ids=str,
)
def test_what_the_supernet_cannot_be_is_refused(
    architecture: Architecture | dict[str, float], message: str
) -> None:
    model = supernet()
    activate(model, MIXED)
    before = low_by_site(model)
    for act in (activate, subnet):
        with pytest.raises(OctnasError, match=message):
            act(model, architecture)
    assert low_by_site(model) == before


def test_activating_a_plain_model_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="layer1"):
        activate(nn.Linear(1, 1), {"layer1": 0.5})


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_copies_are_the_same_network(training: bool) -> None:
    model = supernet()
    activate(model, MIXED)
    model.train(training)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert low_by_site(other) == low_by_site(model)
        assert [m.training for m in other.modules()] == [m.training for m in model.modules()]
        with torch.no_grad():
            assert_sizeable(model.eval()(X))
            assert torch.equal(other.eval()(X), model(X))
        model.train(training)


def test_input_channels_follow_the_input_size() -> None:
    """As for `octnas_network`, also where the arguments do not name them."""
    model = build(Architecture("thumbnail_resnet", (1, 16, 16), {}), seed=0)
    assert model(images(1, 1, 16, 16)).shape == (1, 1000)


BATCHES = [images(8, 3, 16, 16, seed=seed) + 0.5 for seed in range(4)]


def make(alpha: float) -> nn.Module:
    return randomise(build(SPACE.uniform(alpha), seed=0)).double()


def batches() -> list[Tensor]:
    return [batch.double() for batch in BATCHES]


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([value for name, value in model.named_buffers() if value.dim()])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_statistics_are_plain_averages_over_the_batches(alpha: float) -> None:
    model = make(alpha)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(name: str) -> object:
        def hook(_module: nn.Module, inputs: tuple[Tensor | OctaveTensor]) -> None:
            (x,) = inputs
            parts = [x.high, x.low] if isinstance(x, OctaveTensor) else [x]
            rows = [row for part in parts for row in part.transpose(0, 1).flatten(1).unbind()]
            mean, var = torch.stack([r.mean() for r in rows]), torch.stack([r.var() for r in rows])
            seen.setdefault(name, []).append((mean, var))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, OctaveBatchNorm2d):
            module.register_forward_pre_hook(note(name))  # type: ignore[arg-type]
    recalibrate(model, batches())
    assert len(seen) == 9
    for name, batch_statistics in seen.items():
        norm = model.get_submodule(name)
        assert isinstance(norm, OctaveBatchNorm2d)
        assert len(batch_statistics) == 4
        for found, values in zip(
            (norm.running_mean, norm.running_var), zip(*batch_statistics, strict=True), strict=True
        ):
            assert found is not None
            expected = torch.stack(values).mean(0)
            assert_sizeable(expected)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        assert norm.momentum == 0.1


def test_the_order_of_batches_does_not_matter() -> None:
    forwards, backwards = make(0.5), make(0.5)
    recalibrate(forwards, batches())
    recalibrate(backwards, reversed(batches()))
    assert_sizeable(statistics(forwards))
    torch.testing.assert_close(statistics(forwards), statistics(backwards), rtol=1e-9, atol=1e-10)


def test_what_was_there_before_does_not_matter() -> None:
    fresh, used = make(0.5), randomise(make(0.5), seed=9)
    used.load_state_dict({**fresh.state_dict(), **{k: v * 3 for k, v in used.named_buffers()}})
    assert not torch.equal(statistics(fresh), statistics(used))
    for model in (fresh, used):
        recalibrate(model, iter(batches()))
    assert torch.equal(statistics(fresh), statistics(used))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_training_mode_and_parameters_stay(training: bool) -> None:
    model = make(0.5).train(training)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    recalibrate(model, batches())
    assert {module.training for module in model.modules()} == {training}
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None


def test_every_module_keeps_its_own_mode() -> None:
    """Part of a network may be frozen, the rest in training."""
    model = make(0.5).train()
    model.layer1.eval()
    before = [module.training for module in model.modules()]
    recalibrate(model, batches())
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_an_interrupted_recalibration_leaves_the_modes_alone() -> None:
    def broken() -> Iterator[Tensor]:
        yield batches()[0]
        raise OSError("disk")

    model = make(0.5).eval()
    with pytest.raises(OSError, match="disk"):
        recalibrate(model, broken())
    assert not any(module.training for module in model.modules())
    assert {m.momentum for m in model.modules() if isinstance(m, OctaveBatchNorm2d)} == {0.1}


def test_no_batch_at_all_is_refused() -> None:
    """Else the statistics would be 0 and 1, and every score nonsense."""
    model = make(0.5)
    with pytest.raises(ValueError, match="batch"):
        recalibrate(model, [])


def test_it_makes_a_difference() -> None:
    model = make(0.5).eval()
    before = model(batches()[0])
    recalibrate(model, batches())
    assert_sizeable(before, model(batches()[0]) - before)
