"""A function over many arguments by Ray's workers: each once, and failures in one line."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octnas.cluster.start import local_cluster
from octnas.cluster.tasks import run_tasks
from octnas.cluster.tune import LONGEST_REASON
from octnas.errors import ClusterError, RunDirectoryError, SettingError


def test_needs_ray() -> None:
    with pytest.raises(ClusterError, match="Ray does not run"):
        next(run_tasks(abs, [1], workers=2))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster(2):
        yield


@pytest.mark.usefixtures("cluster")
class TestTasks:
    def test_every_item_once_and_as_many_at_a_time_as_there_are_workers(
        self, tmp_path: Path
    ) -> None:
        def work(item: int) -> tuple[int, int]:
            (tmp_path / f"{item}-{time.monotonic_ns()}").touch()
            # Two have to be at work at a time, else this waits for ever.
            while len(list(tmp_path.iterdir())) < 2:
                time.sleep(0.02)
            return 10 * item, os.getpid()

        done = dict(run_tasks(work, range(6), workers=2))
        assert {item: result for item, (result, _) in done.items()} == {n: 10 * n for n in range(6)}
        pids = {pid for _, pid in done.values()}
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert len(list(tmp_path.iterdir())) == 6

    def test_nothing_to_do(self) -> None:
        assert list(run_tasks(abs, [], workers=2)) == []

    def test_relative_paths_mean_what_they_mean_here(self) -> None:
        assert dict(run_tasks(lambda _: Path.cwd(), [0], workers=2)) == {0: Path.cwd()}

    def test_results_come_as_they_are_done(self, tmp_path: Path) -> None:
        def work(item: int) -> int:
            while item == 0 and not (tmp_path / "go").exists():
                time.sleep(0.02)
            return item

        found = run_tasks(work, [0, 1, 2], workers=2)
        assert [next(found), next(found)] == [(1, 1), (2, 2)]
        (tmp_path / "go").touch()
        assert list(found) == [(0, 0)]

    def test_a_lost_worker_is_replaced(self, tmp_path: Path) -> None:
        def work(item: int) -> int:
            (tmp_path / f"{item}-{time.monotonic_ns()}").touch()
            if item == 1 and len(list(tmp_path.glob("1-*"))) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return item

        assert dict(run_tasks(work, range(3), workers=2)) == {0: 0, 1: 1, 2: 2}
        assert len(list(tmp_path.glob("1-*"))) == 2

    def test_what_kills_every_worker_is_given_up(self, tmp_path: Path) -> None:
        def work(item: int) -> int:
            (tmp_path / f"{time.monotonic_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
            return item

        with pytest.raises(ClusterError) as caught:
            list(run_tasks(work, [0], workers=2))
        assert str(caught.value) == (
            "a worker process died, again and again (killed, out of memory, or crashed); "
            "what is finished is kept, and the same command goes on with the rest"
        )
        assert len(list(tmp_path.iterdir())) == 2

    def test_an_error_is_one_line_and_not_tried_again(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def work(item: int) -> int:
            (tmp_path / f"{time.monotonic_ns()}").touch()
            raise ValueError("first\nsecond")

        with pytest.raises(ClusterError) as caught:
            list(run_tasks(work, [0], workers=2))
        assert str(caught.value) == "a task failed: ValueError: first second"
        assert len(list(tmp_path.iterdir())) == 1
        assert capfd.readouterr() == ("", "")

    def test_a_long_error_keeps_its_end(self) -> None:
        def work(item: int) -> int:
            raise ValueError("x" * 5000 + " the end")

        with pytest.raises(ClusterError, match=r"the end$") as caught:
            list(run_tasks(work, [0], workers=2))
        assert len(str(caught.value)) < LONGEST_REASON + 50

    def test_an_error_that_cannot_be_sent_is_one_line_too(self) -> None:
        class OddError(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__("odd")
                self.lock = threading.Lock()  # cannot be pickled

        def work(item: int) -> int:
            raise OddError(1, 2)

        with pytest.raises(ClusterError, match=r"a task failed: .*odd") as caught:
            list(run_tasks(work, [0], workers=2))
        assert len(str(caught.value).splitlines()) == 1

    def test_what_the_user_can_mend_passes_as_it_is(self) -> None:
        def work(item: int) -> int:
            if item:
                raise SettingError("lr", -1, "0 or more")
            raise RunDirectoryError("full: disk")

        with pytest.raises(RunDirectoryError) as caught:
            list(run_tasks(work, [0], workers=2))
        assert str(caught.value) == "full: disk"
        assert caught.value.__cause__ is None
        with pytest.raises(SettingError, match=r"^lr: found -1, allowed: 0 or more$") as setting:
            list(run_tasks(work, [1], workers=2))
        assert (setting.value.key, setting.value.found) == ("lr", -1)
        assert type(setting.value) is SettingError
