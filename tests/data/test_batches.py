"""Orders of epochs, and the ranks' shares of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octnas.data.batches import Epoch, Part, epoch_generator, epoch_order, spread
from octnas.errors import SettingError

COUNTS = st.integers(0, 40)


@given(COUNTS, st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_an_epoch_has_every_image_at_most_once_in_whole_batches(
    count: int, batch: int, seed: int
) -> None:
    for epoch in range(3):
        order = epoch_order(count, batch, seed, epoch)
        assert order.shape == (count // batch, batch)
        shown = order.flatten().tolist()
        assert len(set(shown)) == len(shown)
        assert set(shown) <= set(range(count))


def test_epochs_depend_on_seed_and_number_alone() -> None:
    """Not on which came before; and (1, 2) is not (2, 1)."""
    asked = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    orders = {key: epoch_order(50, 10, *key) for key in asked}
    for key in reversed(asked):
        assert torch.equal(orders[key], epoch_order(50, 10, *key))
    assert len({tuple(found.flatten().tolist()) for found in orders.values()}) == 9


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


def test_every_image_has_its_own_random_numbers() -> None:
    """In each epoch and on one rank only, whatever the number of ranks."""
    whole = [Epoch(epoch_order(20, 4, 7, epoch), 3, 7, epoch, Part()) for epoch in range(2)]
    rows = [tuple(row) for epoch in whole for batch in range(5) for row in epoch[batch][1].tolist()]
    assert len(set(rows)) == 40
    for ranks in (1, 2, 4):
        shares = [Epoch(whole[1].order, 3, 7, 1, Part(rank, ranks))[3] for rank in range(ranks)]
        for position, expected in enumerate(whole[1][3]):
            found = torch.stack([share[position] for share in shares], dim=1)
            assert torch.equal(found.flatten(0, 1), expected)
