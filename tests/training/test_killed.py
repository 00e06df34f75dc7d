"""Trainings that are killed at random moments."""

import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octnas.data.digits import DigitImages
from octnas.nn.search_space import search_space
from octnas.nn.weights import save_weights
from octnas.space.costs import Budget
from octnas.space.distribution import Probabilities
from octnas.training.checkpoint import Checkpoints
from octnas.training.loop import train
from octnas.training.settings import LearnableSettings, Recipe, SupernetSettings
from octnas.training.supernet import train_supernet
from tests.training.resuming import CPU
from tests.training.small import digits
from tests.training.test_loop import network

RECIPE = Recipe(epochs=12, batch_size=64, ema=0.99, clip_grad=1.0)
WEIGHTS = "weights.safetensors"

# One process loads torch; each life is a fork of it, which has never computed anything.
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
from tests.training.test_killed import WEIGHTS, WHOLE, images

images()
folder, lives = Path(sys.argv[1]), 0
chance, whole = random.Random(int(sys.argv[2])), WHOLE[sys.argv[3]]
while not (folder / WEIGHTS).exists():
    life = os.fork()
    if not life:
        whole(folder)
        os._exit(0)
    lives += 1
    # Longer and longer, so that there is an end.
    time.sleep(chance.uniform(0.005, 0.03 * lives))
    os.kill(life, signal.SIGKILL)
    os.waitpid(life, 0)
print(lives)
"""


@cache
def images() -> DigitImages:
    return DigitImages(digits(320, 10, 10, 10))


def whole_training(folder: Path | None) -> dict[str, torch.Tensor]:
    """Train a network, with checkpoints and weights in a folder if there is one."""
    torch.set_num_threads(1)
    batches = images().train_batches(64, 3)
    model = network()
    checkpoints = None if folder is None else Checkpoints(folder / "checkpoints", 0.01)
    train(model, batches, RECIPE, device=CPU, seed=5, checkpoints=checkpoints)
    if folder is not None:
        save_weights(model, folder / WEIGHTS)
    return dict(model.state_dict())


def whole_supernet(folder: Path | None) -> dict[str, torch.Tensor]:
    """The same for a supernet; learned distributions count as weights."""
    torch.set_num_threads(1)
    space = search_space(
        "thumbnail_resnet",
        (1, 16, 16),
        (0, 0.5, 1),
        backbone_args={"num_classes": 10, "channels": [4, 8, 8]},
        fixed={},
        stride_mode="paper",
    )
    learned: dict[str, torch.Tensor] = {}

    def on_learned(found: Mapping[str, Probabilities]) -> None:
        for budget, sites in found.items():
            learned.update({f"{budget}/{name}": torch.tensor(p) for name, p in sites.items()})

    supernet, _ = train_supernet(
        space,
        images(),
        SupernetSettings(
            sampling="learnable",
            threads=1,
            recipe=Recipe(epochs=3, batch_size=64, warmup_epochs=0.5, ema=0.9),
            learnable=LearnableSettings(warmup=0.2, every=1, batch_size=5),
        ),
        seed=5,
        device=CPU,
        checkpoints=None if folder is None else Checkpoints(folder / "checkpoints", 0.01),
        budgets=[Budget(f"{share}", int(share * space.vanilla_macs)) for share in (0.4, 0.6)],
        on_learned=on_learned,
    )
    if folder is not None:
        save_file({**supernet.state_dict(), **learned}, folder / WEIGHTS)
    return {**supernet.state_dict(), **learned}


WHOLE = {"network": whole_training, "supernet": whole_supernet}


@pytest.mark.parametrize(
    ("whole", "seed"),
    [
        ("network", 0),
        *(pytest.param("network", n, marks=pytest.mark.slow) for n in (1, 2, 3)),
        *(pytest.param("supernet", n, marks=pytest.mark.slow) for n in (0, 1)),
    ],
)
def test_a_killed_training_gives_the_same_bits(tmp_path: Path, whole: str, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path), str(seed), whole],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2
    found = load_file(tmp_path / WEIGHTS)
    expected = WHOLE[whole](None)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
