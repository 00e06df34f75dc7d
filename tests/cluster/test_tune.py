"""Searching through Ray Tune gives what evaluating one after the other gives."""

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, SimpleNamespace

import pytest
import ray
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache

import octnas.cluster.tune as cluster_tune
from octnas.cluster.start import local_cluster
from octnas.cluster.tune import LONGEST_REASON, internals, run_with_tune
from octnas.errors import ClusterError, DeviceError
from tests.cluster.batches import Batches

Metrics = Mapping[str, float]
Factory = Callable[[], Callable[[Metrics, float], Metrics]]

ROOT = Path(__file__).parents[2]


def test_needs_ray(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="Ray does not run"):
        run_with_tune(Batches(1, 1), lambda: dict, workers=1, directory=tmp_path)


def test_the_private_attributes_of_tune_that_are_used() -> None:
    """With another version of Ray, look whether they mean the same, and add it here."""
    assert ray.__version__.rpartition(".")[0] in ("2.60",)
    names = TuneController.__init__.__code__.co_names
    assert {"_actor_cache", "_trial_to_actor"} <= set(names)
    assert callable(_ObjectCache.increase_max)


def test_without_them_trials_come_first_in_first_out() -> None:
    first, second = (SimpleNamespace(status=Trial.PENDING) for _ in range(2))
    done = SimpleNamespace(status=Trial.TERMINATED)
    controller = SimpleNamespace(get_trials=lambda: [done, first, second])
    assert internals(controller) == (None, ())
    schedule = cluster_tune._Schedule(SimpleNamespace(retries_left=lambda _: 1), 2)
    schedule.on_trial_add(controller, SimpleNamespace(num_failures=0, trial_id="a"))
    assert schedule.choose_trial_to_run(controller) is first


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster(2):
        yield


@pytest.mark.usefixtures("cluster")
class TestSearch:
    def test_same_as_evaluating_directly(self, tmp_path: Path) -> None:
        def make_evaluate() -> Callable[[Metrics, float], Metrics]:
            (tmp_path / f"made-{os.getpid()}-{time.monotonic_ns()}").touch()
            while len(list(tmp_path.glob("made-*"))) < 2:
                time.sleep(0.05)

            def evaluate(alphas: Metrics, _: float) -> Metrics:
                (tmp_path / f"{alphas['stem']}-{os.getpid()}-{time.monotonic_ns()}").touch()
                time.sleep(0.1)
                return {"loss": sum(alphas.values()), "a/b": math.nan, "whole": 3}

            return evaluate

        driver = Batches(count=14, batch=5)
        directory = tmp_path / "a run #1 ü%20"
        run_with_tune(driver, make_evaluate, workers=2, directory=directory)
        assert driver.asked == list(range(14))
        assert driver.most_outstanding == 2
        for job in driver.jobs:
            expected = {"loss": sum(job.alphas.values()), "whole": 3.0, "a/b": math.nan}
            assert driver.told[job.number] == pytest.approx(expected, nan_ok=True, rel=0, abs=0)
            assert len(list(tmp_path.glob(f"{job.alphas['stem']}-*"))) == 1
        # Both workers stay from batch to batch, and load once.
        made = [path.name.split("-")[1] for path in tmp_path.glob("made-*")]
        last = [next(tmp_path.glob(f"{driver.jobs[n].alphas['stem']}-*")) for n in range(10, 14)]
        assert len(made) == 2
        assert {path.name.split("-")[1] for path in last} == set(made)
        assert list(directory.iterdir()) == []

    @pytest.mark.slow
    def test_lost_worker_is_replaced(self, tmp_path: Path) -> None:
        """Also where evaluations are shorter than a worker takes to start."""

        def make_evaluate() -> Callable[[Metrics, float], Metrics]:
            def evaluate(alphas: Metrics, _: float) -> Metrics:
                (tmp_path / str(os.getpid())).touch()
                while len(list(tmp_path.iterdir())) < 3:  # two workers and Tune's directory
                    time.sleep(0.05)
                if alphas["stem"] == 0.0:
                    raise ValueError
                time.sleep(0.2)
                return {"loss": 1.0}

            return evaluate

        driver = Batches(count=60, batch=60)
        run_with_tune(driver, make_evaluate, workers=2, directory=tmp_path, retries=0)
        assert driver.told == {0: "ValueError", **{n: {"loss": 1.0} for n in range(1, 60)}}
        assert len(list(tmp_path.iterdir())) == 3

    def test_failures_are_told(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        class NotPicklableError(Exception):
            def __init__(self, first: str, second: Callable[[], None]) -> None:
                super().__init__(first)

        def make_evaluate() -> Callable[[Metrics, float], Metrics]:
            def evaluate(alphas: Metrics, _: float) -> Metrics:
                number = round(alphas["stem"] * 8)
                attempt = tmp_path / f"{number}-{time.monotonic_ns()}"
                attempt.touch()
                if number == 1:
                    raise NotPicklableError("two\nlines", lambda: None)
                if number == 2 and len(list(tmp_path.glob("2-*"))) == 1:
                    raise RuntimeError("only the first time")
                if number == 3:
                    os._exit(9)
                return {"loss": float(number)}

            return evaluate

        driver = Batches(count=6, batch=6)
        run_with_tune(driver, make_evaluate, workers=2, directory=tmp_path, retries=1)
        assert driver.told == {
            0: {"loss": 0.0},
            1: "NotPicklableError: two lines",
            2: {"loss": 2.0},
            3: "ActorDiedError: the worker process died (killed, out of memory, or crashed)",
            4: {"loss": 4.0},
            5: {"loss": 5.0},
        }
        attempts = [len(list(tmp_path.glob(f"{number}-*"))) for number in range(6)]
        assert attempts == [1, 2, 2, 2, 1, 1]
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    def test_what_was_lost_with_a_node_uses_up_no_retries(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """But it is not begun again for ever."""
        monkeypatch.setattr(
            cluster_tune, "node_lost", lambda trial: "lost" in cluster_tune.reason_of(trial)
        )
        monkeypatch.setattr(cluster_tune, "_MOST_LOST", 4)

        def make_evaluate() -> Callable[[Metrics, float], Metrics]:
            def evaluate(alphas: Metrics, _: float) -> Metrics:
                number = round(alphas["stem"] * 8)
                (tmp_path / f"{number}-{time.monotonic_ns()}").touch()
                attempt = len(list(tmp_path.glob(f"{number}-*")))
                if number == 0 and attempt < 4:
                    raise OSError("lost")
                if number == 1:
                    raise OSError("own" if attempt in (2, 4) else "lost")
                if number == 2:
                    raise OSError("lost")
                return {"loss": float(number)}

            return evaluate

        driver = Batches(count=4, batch=4)
        run_with_tune(driver, make_evaluate, workers=2, directory=tmp_path, retries=1)
        assert driver.told == {
            0: {"loss": 0.0},
            1: "OSError: own",
            2: "OSError: lost",
            3: {"loss": 3.0},
        }
        attempts = [len(list(tmp_path.glob(f"{number}-*"))) for number in range(4)]
        # Lost, own, lost, own: one retry of its own. After four losses the next are its own.
        assert attempts == [4, 4, 4 + 2, 1]

    def test_a_device_that_fails_ends_the_search(self, tmp_path: Path) -> None:
        """As where candidates are evaluated one after another: it is no candidate's fault."""

        def make_evaluate() -> Callable[[Metrics, float], Metrics]:
            def evaluate(alphas: Metrics, _: float) -> Metrics:
                if alphas["stem"] == 0.5:
                    raise DeviceError("cuda:0 has failed")
                return {"loss": 1.0}

            return evaluate

        driver = Batches(count=12, batch=6)
        with pytest.raises(DeviceError, match=r"^cuda:0 has failed$"):
            run_with_tune(driver, make_evaluate, workers=2, directory=tmp_path, retries=1)
        # Nobody was told that it has failed, so it is evaluated when the search goes on.
        (failed,) = (job.number for job in driver.jobs if job.alphas["stem"] == 0.5)
        assert failed in driver.asked
        assert failed not in driver.told
        assert all(isinstance(outcome, dict) for outcome in driver.told.values())

    def test_factory_that_fails(self, tmp_path: Path) -> None:
        def make_evaluate() -> Callable[[Metrics, float], Metrics]:
            raise FileNotFoundError("supernet.pt")

        driver = Batches(count=1, batch=1)
        run_with_tune(driver, make_evaluate, workers=1, directory=tmp_path, retries=0)
        assert driver.told == {0: "FileNotFoundError: supernet.pt"}

    def test_factory_that_cannot_be_unpickled(self, tmp_path: Path) -> None:
        driver = Batches(count=1, batch=1)
        run_with_tune(driver, Unreadable(), workers=1, directory=tmp_path, retries=0)
        reason = driver.told[0]
        assert isinstance(reason, str)
        assert "the factory is from another version" in reason
        assert "\n" not in reason
        assert len(reason) <= LONGEST_REASON + 2

    def test_error_of_the_driver(self, tmp_path: Path) -> None:
        class Failing(Batches):
            def tell(self, number: int, outcome: Metrics | str) -> None:
                super().tell(number, outcome)
                if number == 1:
                    raise OSError("disk full")

        driver = Failing(count=8, batch=8)
        with pytest.raises(OSError, match="disk full"):
            run_with_tune(driver, constant, workers=1, directory=tmp_path)
        assert sorted(driver.told) == [0, 1]

    def test_driver_that_waits_for_nothing(self, tmp_path: Path) -> None:
        driver = Batches(count=2, batch=2)
        driver.asked = [0]
        with pytest.raises(RuntimeError, match="no candidate is being evaluated"):
            run_with_tune(driver, constant, workers=1, directory=tmp_path)

    def test_keeps_signal_handlers(self, tmp_path: Path) -> None:
        def handler(number: int, frame: FrameType | None) -> None:
            received.append(number)

        class Signalling(Batches):
            def tell(self, number: int, outcome: Metrics | str) -> None:
                signal.raise_signal(signal.SIGUSR1)
                super().tell(number, outcome)

        received: list[int] = []
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            driver = Signalling(count=3, batch=3)
            run_with_tune(driver, constant, workers=1, directory=tmp_path)
            assert signal.getsignal(signal.SIGUSR1) is handler
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert driver.done
        assert received == [signal.SIGUSR1] * 3


def constant() -> Callable[[Metrics, float], Metrics]:
    return lambda alphas, _: {"loss": 1.0}


class Unreadable:
    def __call__(self) -> Callable[[Metrics, float], Metrics]:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[[bytes], object], tuple[bytes]]:
        return _unreadable, (b"",)


def _unreadable(_: bytes) -> object:
    raise pickle.UnpicklingError("the factory is from another version")


@pytest.mark.slow
def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C ends the search at once, and all of Ray with it."""
    script = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
from octnas.cluster.start import local_cluster
from octnas.cluster.tune import run_with_tune
from tests.cluster.batches import Batches

directory = Path(sys.argv[1])

def make_evaluate():
    def evaluate(alphas, _):
        (directory / "evaluating").touch()
        time.sleep(600)
    return evaluate

try:
    with local_cluster(1):
        run_with_tune(Batches(9, 9), make_evaluate, workers=1, directory=directory / "run")
except KeyboardInterrupt:
    sys.exit(3)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "evaluating").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 3
    finally:
        process.kill()
        process.wait()
    assert list((tmp_path / "run").iterdir()) == []
