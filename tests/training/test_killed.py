"""Trainings whose process is killed at random moments, with no time to say goodbye."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from octnas.data.digits import DigitImages
from octnas.nn.weights import save_weights
from octnas.training.checkpoint import Checkpoints
from octnas.training.loop import train
from octnas.training.settings import Recipe
from tests.training.resuming import CPU
from tests.training.small import digits
from tests.training.test_running import network

RECIPE = Recipe(epochs=12, batch_size=64, ema=0.99, clip_grad=1.0)
WEIGHTS = "weights.safetensors"

# One process loads torch; each life is a fork of it, which has never computed anything.
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
from tests.training.test_killed import WEIGHTS, images, whole_training

images()
folder, lives = Path(sys.argv[1]), 0
chance = random.Random(int(sys.argv[2]))
while not (folder / WEIGHTS).exists():
    life = os.fork()
    if not life:
        whole_training(folder)
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
    """Train, writing checkpoints and weights where a folder is given."""
    torch.set_num_threads(1)
    batches = images().train_batches(64, 3)
    model = network()
    checkpoints = None if folder is None else Checkpoints(folder / "checkpoints", 0.01)
    train(model, batches, RECIPE, device=CPU, seed=5, checkpoints=checkpoints)
    if folder is not None:
        save_weights(model, folder / WEIGHTS)
    return dict(model.state_dict())


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_a_killed_training_gives_what_it_would_have_given(tmp_path: Path, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path), str(seed)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2
    found = load_file(tmp_path / WEIGHTS)
    expected = whole_training(None)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
