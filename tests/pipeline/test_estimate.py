"""Tests."""

import json
from dataclasses import replace

import pytest

from octnas.pipeline.estimate import (
    Machine,
    Plan,
    StageNeeds,
    StageWork,
    Work,
    batches,
    between,
    fed,
    needs,
    total,
    training_steps,
)

LAPTOP = Machine("cpu", "a laptop", cores=4)
SERVER = Machine("cuda", "a GPU", cores=32)
STAGE = StageWork(
    stage="retrain",
    on="cpu",
    work=(Work("steps", 1000, 3.6), Work("epochs", 10, 36.0)),
    threads=1,
    memory=5,
    disk=7,
    scratch=11,
)
BUSY = (1000 * 3.6 + 10 * 36.0) / 3600


@pytest.mark.parametrize(
    ("workers", "threads", "wall", "cpu"),
    [
        (1, 1, BUSY, BUSY),
        (2, 1, BUSY / 2, BUSY),
        (1, 4, BUSY, BUSY * 4),
        (2, 2, BUSY / 2, BUSY * 2),
        # Cores that are not there do nothing.
        (8, 1, BUSY / 4, BUSY),
        (4, 2, BUSY / 2, BUSY * 2),
        (2, 3, BUSY / (4 / 3), BUSY * 3),
        (1, 64, BUSY, BUSY * 4),
    ],
)
def test_hours_on_a_cpu(workers: int, threads: int, wall: float, cpu: float) -> None:
    found = needs(replace(STAGE, workers=workers, threads=threads), LAPTOP)
    assert found.wall_hours == pytest.approx(wall)
    assert found.cpu_hours == pytest.approx(cpu)
    assert found.gpu_hours == found.gpu_memory == 0
    assert (found.memory, found.disk, found.scratch) == (workers * 5, 7, 11)


def test_workers_that_share_a_gpu_are_no_faster_and_need_its_memory_together() -> None:
    found = needs(replace(STAGE, on="cuda", workers=3, gpu_memory=10), SERVER)
    assert found.wall_hours == found.gpu_hours == pytest.approx(BUSY)
    assert (found.cpu_hours, found.gpu_memory, found.memory) == (0, 3 * 10, 3 * 5)


def test_workers_with_a_gpu_each() -> None:
    found = needs(replace(STAGE, on="cuda", workers=4, gpus=4, gpu_memory=10), SERVER)
    assert found.wall_hours == pytest.approx(BUSY / 4)
    assert found.gpu_hours == pytest.approx(BUSY)
    assert (found.gpu_memory, found.memory) == (10, 4 * 5)


def test_no_more_workers_than_work() -> None:
    stage = replace(STAGE, work=(Work("trainings", 2, 60.0),), workers=4)
    assert needs(stage, LAPTOP) == needs(replace(stage, workers=2), LAPTOP)
    assert needs(replace(stage, work=()), LAPTOP).wall_hours == 0


def test_what_is_finished_needs_its_disk_alone() -> None:
    found = needs(replace(STAGE, done=True), LAPTOP)
    assert found == StageNeeds(stage="retrain", disk=7, done=True)


def test_hours_add_up_and_memory_does_not() -> None:
    first = needs(replace(STAGE, stage="supernet", memory=50, scratch=2), LAPTOP)
    second = needs(replace(STAGE, on="cuda", gpu_memory=10), SERVER)
    found = total([first, second])
    assert found.wall_hours == pytest.approx(2 * BUSY)
    assert found.cpu_hours == found.gpu_hours == pytest.approx(BUSY)
    assert (found.memory, found.gpu_memory) == (50, 10)
    assert (found.disk, found.scratch, found.done) == (7 + 7, 11, False)


def test_steps_leave_the_incomplete_batch_out_and_evaluation_does_not() -> None:
    assert training_steps(1_281_167, 256, 90) == 5004 * 90
    assert training_steps(63, 64, 5) == 0
    assert batches(1000, 250) == 4
    assert batches(1001, 250) == 5


def test_a_step_waits_for_its_images() -> None:
    assert fed(0.5, 64, 0.0, 2) == fed(0.5, 64, 0.0, 0) == 0.5
    assert fed(0.5, 64, 0.01, 2) == 0.5
    assert fed(0.1, 64, 0.01, 2) == pytest.approx(64 * 0.01 / 2)
    assert fed(0.1, 64, 0.01, 0) == pytest.approx(0.1 + 64 * 0.01)


def test_seconds_between_two_networks() -> None:
    vanilla, middle = (400, 4.0), (200, 3.0)
    assert between(400, vanilla, middle) == between(900, vanilla, middle) == 4.0
    assert between(200, vanilla, middle) == between(100, vanilla, middle) == 3.0
    assert between(250, vanilla, middle) == between(250, middle, vanilla) == pytest.approx(3.25)
    assert between(400, vanilla, (400, 5.0)) == 5.0
    # Fewer MACs may take longer.
    assert between(300, vanilla, (200, 5.0)) == pytest.approx(4.5)


def test_a_plan_is_a_json_document() -> None:
    stages = (needs(STAGE, LAPTOP), needs(replace(STAGE, stage="search"), LAPTOP))
    plan = Plan("digits", LAPTOP, {"train": 4000}, "settings", stages, {"step": 0.1}, ("A note.",))
    document = json.loads(json.dumps(plan.to_dict()))
    assert document["schema"] == 1
    assert [stage["stage"] for stage in document["stages"]] == ["retrain", "search"]
    assert document["total"]["wall_hours"] == pytest.approx(2 * BUSY)
    assert document["machine"] == {"device": "cpu", "name": "a laptop", "cores": 4}
