import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from octnas import Architecture, OctaveConv2d
from octnas.errors import ArchitectureError, OctnasError
from octnas.nn import activate, build, build_supernet, subnet
from octnas.nn.shapes import search_space
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
    expected = space.realise({})
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
