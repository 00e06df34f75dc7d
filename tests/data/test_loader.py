"""Processes that decode images, where they cannot hand them over."""

from typing import Any

import pytest

from octnas.data.loader import load
from octnas.errors import DataError


@pytest.mark.parametrize(
    "said",
    [
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. ",
    ],
)
def test_no_shared_memory(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", broken)
    with pytest.raises(DataError, match=r"/dev/shm has too little here; set data.workers=0"):
        list(load([1, 2], 0))  # type: ignore[arg-type]
