"""Trainings as trials of Ray Tune: reports, early stopping, failures."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from octnas.cluster import tune_trainings
from octnas.cluster.start import local_cluster
from octnas.cluster.tune_trainings import Halving, train_with_tune
from octnas.errors import ClusterError

EPOCHS = 8
Report = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Item:
    """A network that learns in a straight line."""

    name: str
    macs: int
    quality: float
    front: bool = True


CHEAP = Item("cheap", 10, 0.5)
DOMINATED = Item("dominated", 20, 0.4)
BETTER = Item("better", 30, 0.8)
CONTROL = Item("control", 40, 0.3, front=False)
ALONE = Item("alone", 5, 0.1)
ITEMS = [CHEAP, DOMINATED, BETTER, CONTROL, ALONE]
HALVING: Halving[Item] = Halving(
    metric="top1",
    cost=lambda item: item.macs,
    may_stop=lambda item: item.front,
    epochs=EPOCHS,
    grace=2,
    reduction=2,
)


def learn(item: Item, report: Report) -> None:
    for epoch in range(1, EPOCHS + 1):
        report({"epoch": epoch, "top1": item.quality * epoch / EPOCHS, "lr": 0.1})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster(2):
        yield


class Reports:
    """What was reported, by name."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Mapping[str, float]]] = {}

    def __call__(self, item: Item, row: Mapping[str, float]) -> None:
        self.rows.setdefault(item.name, []).append(row)


def test_needs_ray(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="Ray does not run"):
        train_with_tune(learn, ITEMS, Reports(), workers=1, directory=tmp_path)


@pytest.mark.usefixtures("cluster")
class TestTrainings:
    def test_all_come_to_their_end_without_halving(self, tmp_path: Path) -> None:
        reports = Reports()
        assert train_with_tune(learn, ITEMS, reports, workers=2, directory=tmp_path) == []
        assert {name: len(rows) for name, rows in reports.rows.items()} == {
            item.name: EPOCHS for item in ITEMS
        }
        last = reports.rows["better"][-1]
        assert (last["epoch"], last["top1"], last["lr"]) == (EPOCHS, 0.8, 0.1)
        assert list(tmp_path.iterdir()) == []

    def test_what_others_dominate_is_stopped(self, tmp_path: Path) -> None:
        """One after the other, so that the order is that of the items."""
        reports = Reports()
        stopped = train_with_tune(
            learn, ITEMS, reports, workers=1, directory=tmp_path, halving=HALVING
        )
        assert stopped == [DOMINATED]
        epochs = {name: len(rows) for name, rows in reports.rows.items()}
        assert epochs == {item.name: EPOCHS for item in ITEMS} | {"dominated": 2}

    @pytest.mark.slow
    def test_a_failed_training_is_begun_again_and_one_that_always_fails_is_named(
        self, tmp_path: Path
    ) -> None:
        marks = tmp_path / "marks"
        marks.mkdir()

        def train(item: Item, report: Report) -> None:
            first = not (marks / item.name).exists()
            (marks / item.name).touch()
            if item.name != "cheap" and (first or item.name == "control"):
                raise ValueError(f"{item.name} went wrong")
            learn(item, report)

        reports = Reports()
        with pytest.raises(ClusterError) as caught:
            train_with_tune(train, ITEMS, reports, workers=2, directory=tmp_path / "tune")
        said = str(caught.value)
        assert said.startswith("1 of 5 trainings failed; the first: ValueError: control went wrong")
        assert {name for name, rows in reports.rows.items() if len(rows) == EPOCHS} == {
            item.name for item in ITEMS if item.front
        }

    @pytest.mark.slow
    def test_what_was_lost_with_a_node_is_begun_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However few retries there are; but not for ever."""
        monkeypatch.setattr(tune_trainings, "node_lost", lambda _: True)
        marks = tmp_path / "marks"
        marks.mkdir()

        def train(item: Item, report: Report) -> None:
            mark = marks / f"{item.name}-{time.monotonic_ns()}"
            mark.touch()
            attempts = len(list(marks.glob(f"{item.name}-*")))
            if item.name == "alone" or (item.name == "better" and attempts == 1):
                raise ValueError("lost")
            learn(item, report)

        reports = Reports()
        with pytest.raises(ClusterError, match=r"^1 of 5 trainings failed; the first: ValueError"):
            train_with_tune(
                train,
                ITEMS,
                reports,
                workers=1,
                directory=tmp_path / "tune",
                retries=0,
                halving=HALVING,
            )
        epochs = {name: len(rows) for name, rows in reports.rows.items()}
        assert epochs == {"cheap": EPOCHS, "dominated": 2, "better": EPOCHS, "control": EPOCHS}
        counts = Counter(path.name.partition("-")[0] for path in marks.iterdir())
        assert counts == {item.name: 1 for item in ITEMS} | {"better": 2, "alone": 1 + 3}
