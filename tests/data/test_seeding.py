import contextlib
import random

import numpy as np
import pytest
import torch

from octnas.data.seeding import seeded


def states() -> tuple[object, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def draws() -> tuple[float, ...]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_seed_decides_what_is_drawn() -> None:
    found = []
    for seed in (0, 0, 1):
        draws()
        with seeded(seed):
            found.append(draws())
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_generators_are_as_before_also_after_an_error() -> None:
    before = states()
    with contextlib.suppress(KeyError), seeded(5):
        draws()
        raise KeyError
    assert states() == before


def test_accelerators_keep_their_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's dropout there goes on as it would."""

    def refuse(*_: object) -> None:
        raise AssertionError("an accelerator was seeded")

    for place in (
        "torch.cuda.manual_seed_all",
        "torch.mps.manual_seed",
        "torch.xpu.manual_seed_all",
    ):
        monkeypatch.setattr(place, refuse)
    with seeded(5):
        draws()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_keeps_its_generator() -> None:
    torch.rand((), device="cuda")
    before = torch.cuda.get_rng_state()
    with seeded(5):
        draws()
    assert torch.equal(torch.cuda.get_rng_state(), before)
