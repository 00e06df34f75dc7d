"""Supernets with the initial weights of a trained network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octnas.data.digits import DigitImages
from octnas.errors import SettingError
from octnas.nn.search_space import search_space
from octnas.nn.supernet import build, build_supernet
from octnas.space.search_space import SearchSpace
from octnas.training.settings import Recipe, SupernetSettings
from octnas.training.supernet import train_supernet
from tests.nn.reference import randomise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def space(digit_space: SearchSpace) -> SearchSpace:
    return search_space(
        digit_space.backbone,
        digit_space.input_size,
        digit_space.alphas,
        backbone_args=digit_space.backbone_args,
        fixed={},
        stride_mode="timm",
    )


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


def test_an_original_needs_weights() -> None:
    with pytest.raises(SettingError, match="original only with weights"):
        SupernetSettings(teacher="original")
