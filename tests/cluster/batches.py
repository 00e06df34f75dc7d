"""A driver that hands out batches, as the search does, and minds how it is treated."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    number: int
    alphas: Mapping[str, float]
    limit: float = 0.0


class Batches:
    """``count`` jobs; a batch is handed out when all of the batch before it are told."""

    def __init__(self, count: int, batch: int) -> None:
        self.jobs = [Job(n, {"stem": n / 8, "layer1.0/conv1": 0.5}) for n in range(count)]
        self.batch = batch
        self.asked: list[int] = []
        self.told: dict[int, Mapping[str, float] | str] = {}
        self.most_outstanding = 0
        self.lock = threading.Lock()  # cannot be pickled, like the study of the real driver

    def ask(self) -> Job | None:
        assert threading.current_thread() is threading.main_thread()
        if len(self.asked) == len(self.jobs):
            return None
        if len(self.asked) % self.batch == 0 and len(self.told) < len(self.asked):
            return None
        job = self.jobs[len(self.asked)]
        self.asked.append(job.number)
        self.most_outstanding = max(self.most_outstanding, len(self.asked) - len(self.told))
        return job

    def tell(self, number: int, outcome: Mapping[str, float] | str) -> None:
        assert number in self.asked
        assert number not in self.told
        self.told[number] = outcome

    @property
    def done(self) -> bool:
        return len(self.told) == len(self.jobs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Batches":
        raise AssertionError("the driver was copied")
