"""Two processes at one run directory, on one host or on two."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import octnas.runtime.lock as lease
from octnas.errors import RunDirectoryError
from octnas.runtime.lock import LOCK_FILE, held

PROGRAM = "from tests.runtime.lock_work import main; main()"


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Processes that end with the test."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments: object) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, *map(str, arguments)],
                    cwd=Path(__file__).parents[2],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            return process

        yield begin


def begun(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BEAT", 0.1), ("LEASE", 1.0), ("_POLL", 0.05)):
        monkeypatch.setattr(lease, name, value)


def test_the_second_is_refused_with_the_firsts_name(tmp_path: Path, start: Start) -> None:
    first = begun(start("hold", tmp_path, 60))
    begin = time.monotonic()
    with pytest.raises(RunDirectoryError) as caught, held(tmp_path):
        pass
    assert time.monotonic() - begin < 1
    owner = f"process {first.pid} on {socket.gethostname()}"
    assert str(caught.value).startswith(f"{tmp_path}: {owner} is using this run; ")
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == [LOCK_FILE]


def test_it_is_released_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    with held(tmp_path):
        assert files(tmp_path) == [LOCK_FILE]
    with pytest.raises(ZeroDivisionError), held(tmp_path):
        assert 1 / 0
    assert files(tmp_path) == []
    with held(tmp_path):
        assert files(tmp_path) == [LOCK_FILE]


def test_a_killed_one_is_followed_at_once(tmp_path: Path, start: Start) -> None:
    first = begun(start("hold", tmp_path, 60))
    first.kill()
    first.wait()
    begin = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - begin < 1
        assert files(tmp_path) == [LOCK_FILE]


@pytest.mark.usefixtures("quick")
def test_a_zombie_is_followed_when_its_lease_runs_out(tmp_path: Path, start: Start) -> None:
    """As where process 1 of a container does not reap."""
    first = begun(start("elsewhere", tmp_path, socket.gethostname(), 60))
    first.kill()
    time.sleep(0.2)
    with held(tmp_path):
        assert files(tmp_path) == [LOCK_FILE]


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path: Path, start: Start) -> None:
    first = begun(start("hold", tmp_path, 60))
    path = tmp_path / LOCK_FILE
    first.send_signal(signal.SIGSTOP)
    path.write_text(re.sub("start=.*", "start=1", path.read_text()))
    with held(tmp_path):
        pass


@pytest.mark.usefixtures("quick")
def test_another_host_is_believed_while_it_is_alive(tmp_path: Path, start: Start) -> None:
    first = begun(start("elsewhere", tmp_path, "other", 60))
    said: list[str] = []
    refused = pytest.raises(RunDirectoryError, match=r"process \d+ on other is using this run")
    with refused, held(tmp_path, said.append):
        pass
    assert len(said) == 1
    first.kill()
    first.wait()
    begin = time.monotonic()
    with held(tmp_path, said.append):
        assert time.monotonic() - begin >= lease.LEASE
    assert len(said) == 2


@pytest.mark.usefixtures("quick")
def test_one_that_was_suspended_exits_when_another_took_over(tmp_path: Path, start: Start) -> None:
    """Clocks do not matter: only the heartbeat is watched."""
    first = begun(start("elsewhere", tmp_path, "suspended", 60))
    first.send_signal(signal.SIGSTOP)
    with held(tmp_path):
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=20)
        assert f"pid={os.getpid()}\n" in (tmp_path / LOCK_FILE).read_text()
    assert first.returncode == 2
    assert "taken over by process" in err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", ["", "filelock/2\n12"])
def test_a_truncated_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    with held(tmp_path):
        assert files(tmp_path) == [LOCK_FILE]


def test_many_at_once_are_never_two_inside(tmp_path: Path, start: Start) -> None:
    processes = [start("race", tmp_path, 10) for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (0, "")
        assert int(out) >= 1
    assert files(tmp_path) == []
