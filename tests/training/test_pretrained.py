"""Supernets with the initial weights of a trained network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octnas.data.digits import DigitImages
from octnas.errors import SettingError
from octnas.nn.supernet import (
    ConvertedNetwork,
    TrainedSupernet,
    activate,
    build,
    build_supernet,
)
from octnas.nn.weights import save_weights
from octnas.space.search_space import SearchSpace
from octnas.training.settings import Recipe, SupernetSettings
from octnas.training.standalone import Training, _initial
from octnas.training.supernet import train_supernet
from tests.nn.reference import randomise
from tests.training.small import with_timm_strides

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def space(digit_space: SearchSpace) -> SearchSpace:
    return with_timm_strides(digit_space)


@pytest.fixture(scope="module")
def weights(space: SearchSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = randomise(build(space.uniform(0), seed=7))
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("switchable", [False, True])
def test_at_first_it_is_the_trained_network(
    space: SearchSpace, weights: Path, switchable: bool
) -> None:
    supernet = build_supernet(space, seed=0, switchable=switchable, weights=str(weights)).eval()
    network = randomise(build(space.uniform(0), seed=7)).eval()
    images = torch.randn(4, *space.input_size)
    logits = network(images)
    assert logits.abs().max() > 0.01
    assert torch.equal(supernet(images), logits)


@pytest.mark.parametrize("switchable", [False, True])
def test_at_first_it_is_the_converted_network(
    space: SearchSpace, weights: Path, switchable: bool
) -> None:
    """At any α, if it rescales kernels."""
    supernet = build_supernet(
        space, seed=0, switchable=switchable, weights=str(weights), rescaled=True
    ).eval()
    converted, images = ConvertedNetwork(space, weights), torch.randn(4, *space.input_size)
    model = converted.load().eval()
    vanilla = model(images)
    assert vanilla.std() > 0.01
    for alpha in (0.0, 0.5, 1.0):
        alphas = space.uniform(alpha).alphas
        activate(supernet, alphas)
        converted.activate(model, alphas)
        expected = model(images)
        torch.testing.assert_close(supernet(images), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(expected, vanilla) == (alpha == 0)


def test_a_subnet_starts_from_its_weights(
    space: SearchSpace, weights: Path, tmp_path: Path, digit_space: SearchSpace
) -> None:
    supernet = build_supernet(space, seed=0, switchable=True, weights=str(weights), rescaled=True)
    for name, value in supernet.named_parameters():
        if "low_" in name or "path_scales" in name:
            value.data.mul_(1.5)
    save_weights(supernet, tmp_path / "supernet.safetensors")
    trained = TrainedSupernet(space, tmp_path / "supernet.safetensors", True, rescaled=True)
    half = space.uniform(0.5)
    found = _initial(Training(half, 0, tmp_path, supernet=trained)).eval()
    images = torch.randn(4, *space.input_size)
    activate(supernet, half.alphas)
    expected = supernet.eval()(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found(images), expected, rtol=1e-4, atol=1e-5)
    assert found.state_dict().keys() == build(half, seed=0).state_dict().keys()
    # Other widths do not fit, and begin from scratch.
    args = {**space.backbone_args, "channels": [4, 4, 4]}
    for other in (replace(half, backbone_args=args), digit_space.uniform(0.5)):
        assert not trained.fits(other)
        scratch = _initial(Training(other, 3, tmp_path, supernet=trained)).state_dict()
        fresh = build(other, seed=3).state_dict()
        assert all(torch.equal(scratch[name], value) for name, value in fresh.items())
    assert trained.fits(replace(half, input_size=(1, 8, 8)))


@pytest.mark.slow
def test_it_learns_from_the_original(
    space: SearchSpace, weights: Path, few_digits: DigitImages
) -> None:
    settings = SupernetSettings(
        weights=str(weights),
        teacher="original",
        alpha_warmup=0.5,
        threads=1,
        recipe=Recipe(epochs=2, batch_size=32, lr=0.01, warmup_epochs=0.5),
    )
    supernet, history = train_supernet(space, few_digits, settings, seed=0, device=CPU)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    # Nothing but the supernet learns.
    again, repeated = train_supernet(space, few_digits, settings, seed=0, device=CPU)
    assert [row["train_loss"] for row in repeated] == [row["train_loss"] for row in history]
    rescaled = train_supernet(space, few_digits, settings, seed=0, device=CPU, rescaled=True)[1]
    assert rescaled[0]["train_loss"] != history[0]["train_loss"]
    plain = replace(settings, teacher="none")
    assert train_supernet(space, few_digits, plain, seed=0, device=CPU)[1] != history
    for one, other in zip(supernet.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_new_classifier_cannot_teach(
    space: SearchSpace, weights: Path, few_digits: DigitImages
) -> None:
    args = {**space.backbone_args, "num_classes": 7}
    other = replace(space, backbone_args=args)
    settings = SupernetSettings(weights=str(weights), teacher="original", threads=1)
    with pytest.raises(SettingError, match=r"weights: .* these have no fc\.weight, fc\.bias"):
        train_supernet(other, few_digits, settings, seed=0, device=CPU)


def test_an_original_needs_weights(space: SearchSpace, few_digits: DigitImages) -> None:
    settings = SupernetSettings(teacher="original", threads=1)
    with pytest.raises(SettingError, match="original only with weights"):
        train_supernet(space, few_digits, settings, seed=0, device=CPU)
