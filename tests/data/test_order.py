"""Orders of epochs, and the ranks' shares of them."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octnas.data.order import Part, epoch_orders
from octnas.errors import SettingError

COUNTS = st.integers(0, 40)


@given(COUNTS, st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_an_epoch_has_every_image_at_most_once_in_whole_batches(
    count: int, batch: int, seed: int
) -> None:
    for order, seeds in islice(epoch_orders(count, batch, seed), 3):
        assert len(order) == len(seeds) == count - count % batch
        assert len(set(order.tolist())) == len(order)
        assert set(order.tolist()) <= set(range(count))
        assert all(0 <= value < 2**31 for value in seeds.tolist())


def test_epochs_differ_and_come_again_by_the_seed() -> None:
    epochs = [list(islice(epoch_orders(50, 10, seed), 2)) for seed in (1, 1, 2)]
    for epoch in range(2):
        assert torch.equal(epochs[0][epoch][0], epochs[1][epoch][0])
        assert torch.equal(epochs[0][epoch][1], epochs[1][epoch][1])
        assert not torch.equal(epochs[0][epoch][0], epochs[2][epoch][0])
    assert not torch.equal(epochs[0][0][0], epochs[0][1][0])


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
