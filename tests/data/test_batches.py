"""Orders of epochs, and the ranks' shares of them."""

import contextlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octnas.data.batches import Part, epoch_generator, epoch_order, seeded, spread
from octnas.errors import SettingError

COUNTS = st.integers(0, 40)


@given(COUNTS, st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_an_epoch_has_every_image_at_most_once_in_whole_batches(
    count: int, batch: int, seed: int
) -> None:
    for epoch in range(3):
        order, seeds = epoch_order(count, batch, seed, epoch)
        assert order.shape == seeds.shape == (count // batch, batch)
        shown = order.flatten().tolist()
        assert len(set(shown)) == len(shown)
        assert set(shown) <= set(range(count))
        assert all(0 <= value < 2**31 for value in seeds.flatten().tolist())


def test_epochs_depend_on_seed_and_number_alone() -> None:
    """Not on which came before; and (1, 2) is not (2, 1)."""
    asked = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    orders = {key: epoch_order(50, 10, *key) for key in asked}
    for key in reversed(asked):
        again = epoch_order(50, 10, *key)
        assert torch.equal(orders[key][0], again[0])
        assert torch.equal(orders[key][1], again[1])
    for part in range(2):
        assert len({tuple(found[part].flatten().tolist()) for found in orders.values()}) == 9


def test_streams_of_an_epoch_differ() -> None:
    drawn = [torch.rand(4, generator=epoch_generator(3, 1, stream)) for stream in (0, 1, 1)]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], drawn[2])


@given(st.integers(1, 5), st.integers(1, 6))
def test_ranks_have_every_entry_of_a_batch_once(ranks: int, share: int) -> None:
    batch = torch.arange(ranks * share)
    shares = [Part(rank, ranks).of(batch) for rank in range(ranks)]
    assert all(len(one) == share for one in shares)
    assert sorted(torch.cat(shares).tolist()) == batch.tolist()


@given(st.integers(1, 5), st.integers(1, 30))
def test_batches_that_ranks_cannot_share_are_refused(ranks: int, batch: int) -> None:
    part = Part(0, ranks)
    if batch % ranks == 0:
        part.check(batch)
    else:
        with pytest.raises(SettingError, match=f"batch_size: found {batch}"):
            part.check(batch)


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [
        (10, 0, list(range(10))),
        (10, 10, list(range(10))),
        (10, 99, list(range(10))),
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 4, [0, 2, 5, 7]),
        (0, 3, []),
    ],
)
def test_positions_are_evenly_spread(count: int, most: int, expected: list[int]) -> None:
    assert spread(count, most) == expected


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
