"""Arithmetic of the estimate."""

import json
from typing import Any

import pytest

from octnas.pipeline.estimate import Machine, Plan, StageNeeds, fed, interpolate, needs

LAPTOP = Machine("cpu", "a laptop", cores=4)
SERVER = Machine("cuda", "a GPU", cores=32)
WORK = [(1000, 3.6), (10, 36.0)]
BUSY = (1000 * 3.6 + 10 * 36.0) / 3600


def retraining(machine: Machine, **changes: Any) -> StageNeeds:
    return needs(
        "retrain", machine, **{"work": WORK, "memory": 5, "disk": 7, "scratch": 11, **changes}
    )


@pytest.mark.parametrize(
    ("workers", "threads", "wall", "cpu"),
    [
        (1, 1, BUSY, BUSY),
        (2, 1, BUSY / 2, BUSY),
        (1, 4, BUSY, BUSY * 4),
        (2, 2, BUSY / 2, BUSY * 2),
        # Missing cores do nothing.
        (8, 1, BUSY / 4, BUSY),
        (4, 2, BUSY / 2, BUSY * 2),
        (2, 3, BUSY / (4 / 3), BUSY * 3),
        (1, 64, BUSY, BUSY * 4),
    ],
)
def test_hours_on_a_cpu(workers: int, threads: int, wall: float, cpu: float) -> None:
    found = retraining(LAPTOP, workers=workers, threads=threads)
    assert found.wall_hours == pytest.approx(wall)
    assert found.cpu_hours == pytest.approx(cpu)
    assert found.gpu_hours == found.gpu_memory == 0
    assert (found.memory, found.disk, found.scratch) == (workers * 5, 7, 11)


@pytest.mark.parametrize(("workers", "gpus", "sharing"), [(3, 1, 3), (4, 4, 1)])
def test_workers_that_share_a_gpu_are_no_faster(workers: int, gpus: int, sharing: int) -> None:
    found = retraining(SERVER, workers=workers, gpus=gpus, gpu_memory=10)
    assert found.wall_hours == pytest.approx(BUSY / gpus)
    assert found.gpu_hours == pytest.approx(BUSY)
    assert (found.cpu_hours, found.gpu_memory, found.memory) == (0, sharing * 10, workers * 5)


def test_no_more_workers_than_work() -> None:
    two = [(2, 60.0)]
    assert retraining(LAPTOP, work=two, workers=4) == retraining(LAPTOP, work=two, workers=2)
    assert retraining(LAPTOP, work=[]).wall_hours == 0


def test_a_step_waits_for_its_images() -> None:
    assert fed(0.5, 64, 0.0, 2) == fed(0.5, 64, 0.0, 0) == 0.5
    assert fed(0.5, 64, 0.01, 2) == 0.5
    assert fed(0.1, 64, 0.01, 2) == pytest.approx(64 * 0.01 / 2)
    assert fed(0.1, 64, 0.01, 0) == pytest.approx(0.1 + 64 * 0.01)


def test_seconds_between_two_networks() -> None:
    vanilla, middle = (400, 4.0), (200, 3.0)
    assert interpolate(400, vanilla, middle) == interpolate(900, vanilla, middle) == 4.0
    assert interpolate(200, vanilla, middle) == interpolate(100, vanilla, middle) == 3.0
    assert interpolate(250, vanilla, middle) == interpolate(250, middle, vanilla)
    assert interpolate(250, vanilla, middle) == pytest.approx(3.25)
    assert interpolate(400, vanilla, (400, 5.0)) == 5.0
    # Fewer MACs may take longer.
    assert interpolate(300, vanilla, (200, 5.0)) == pytest.approx(4.5)


def test_hours_and_disk_add_up_and_memory_does_not() -> None:
    stages = (
        needs("supernet", LAPTOP, WORK, memory=50, disk=7, scratch=2),
        retraining(SERVER, gpu_memory=10),
    )
    plan = Plan("digits", LAPTOP, {"train": 4000}, "settings", stages, {"step": 0.1}, ("A note.",))
    total = plan.total
    assert total.wall_hours == pytest.approx(2 * BUSY)
    assert total.cpu_hours == total.gpu_hours == pytest.approx(BUSY)
    assert (total.memory, total.gpu_memory) == (50, 10)
    assert (total.disk, total.scratch, total.done) == (7 + 7, 11, False)
    document = json.loads(json.dumps(plan.to_dict()))
    assert document["schema"] == 1
    assert [stage["stage"] for stage in document["stages"]] == ["supernet", "retrain"]
    assert document["total"]["wall_hours"] == pytest.approx(2 * BUSY)
    assert document["machine"] == {"device": "cpu", "name": "a laptop", "cores": 4}
