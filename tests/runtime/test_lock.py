"""Two processes at one run directory, on one host or on two."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import octnas.runtime.lock as lease
from octnas.errors import RunDirectoryError
from octnas.runtime.lock import FOLDER, held
from tests.mutations import DEEP

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
    return sorted(file.name for file in (path / FOLDER).iterdir())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BEAT", 0.1), ("LEASE", 1.0), ("_LOOK", 0.05)):
        monkeypatch.setattr(lease, name, value)


def test_the_second_is_refused_with_the_firsts_name(tmp_path: Path, start: Start) -> None:
    first = begun(start("hold", tmp_path, 60))
    with pytest.raises(RunDirectoryError) as caught, held(tmp_path):
        pass
    host = lease.socket.gethostname()
    assert str(caught.value).startswith(f"{tmp_path}: process {first.pid} on {host} since 20")
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == ["1.json"]


def test_it_is_given_back_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    with held(tmp_path):
        assert not json.loads((tmp_path / FOLDER / "1.json").read_text())["released"]
    with pytest.raises(ZeroDivisionError), held(tmp_path):
        assert 1 / 0
    document = json.loads((tmp_path / FOLDER / "2.json").read_text())
    assert document["released"]
    assert document["schema"] == lease.SCHEMA
    with held(tmp_path):
        assert files(tmp_path) == ["3.json"]


def test_a_killed_one_is_followed_at_once(tmp_path: Path, start: Start) -> None:
    first = begun(start("hold", tmp_path, 60))
    first.kill()
    first.wait()
    begin = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - begin < 1
        assert files(tmp_path) == ["2.json"]


def test_so_is_a_dead_one_that_nobody_has_waited_for(tmp_path: Path, start: Start) -> None:
    """As process 1 of a container often does not."""
    first = begun(start("hold", tmp_path, 60))
    first.kill()
    time.sleep(0.2)
    with held(tmp_path):
        pass


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path: Path, start: Start) -> None:
    first = begun(start("hold", tmp_path, 60))
    path = tmp_path / FOLDER / "1.json"
    first.send_signal(signal.SIGSTOP)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"started": "1"}))
    with held(tmp_path):
        pass


@pytest.mark.usefixtures("quick")
def test_another_host_is_believed_while_it_is_alive(tmp_path: Path, start: Start) -> None:
    first = begun(start("elsewhere", tmp_path, "other", 60))
    said: list[str] = []
    refused = pytest.raises(RunDirectoryError, match=r"process \d+ on other since")
    with refused, held(tmp_path, said.append):
        pass
    assert len(said) == 1
    first.kill()
    first.wait()
    begin = time.monotonic()
    with held(tmp_path, said.append):
        assert time.monotonic() - begin >= lease.LEASE
        assert files(tmp_path) == ["2.json"]
    assert len(said) == 2


@pytest.mark.usefixtures("quick")
def test_one_that_was_held_up_ends_when_another_took_over(tmp_path: Path, start: Start) -> None:
    """Clocks do not matter: it is only watched."""
    first = begun(start("elsewhere", tmp_path, "suspended", 60))
    first.send_signal(signal.SIGSTOP)
    with held(tmp_path):
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=20)
        content = json.loads((tmp_path / FOLDER / "2.json").read_text())
        assert content["process"] == lease.os.getpid()
    assert first.returncode == 2
    assert "was taken over by process" in err
    assert files(tmp_path) == ["2.json"]


@pytest.mark.usefixtures("quick")
def test_a_file_that_was_never_written_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "7.json").touch()
    with held(tmp_path):
        assert files(tmp_path) == ["8.json"]


@pytest.mark.parametrize("name", ["abc.json", "3 (conflicted copy).json", "².json", "٣.json"])
def test_a_file_that_octnas_has_not_written_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / name).touch()
    for number in (1, 2):
        with held(tmp_path):
            assert files(tmp_path) == sorted([f"{number}.json", name])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [b"\xff\xfe", DEEP.encode(), b"[]", b'{"released": 0}'])
def test_an_owner_that_cannot_be_read_is_waited_for(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "7.json").write_bytes(content)
    said: list[str] = []
    with held(tmp_path, said.append):
        assert files(tmp_path) == ["8.json"]
    assert len(said) == 1
    assert "process 0 on an unknown host" in said[0]


def test_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(lease.os, "link", refuse)
    with held(tmp_path):
        assert files(tmp_path) == ["1.json"]
        with pytest.raises(RunDirectoryError, match="works on it"), held(tmp_path):
            pass


def test_many_at_once_are_never_two_inside(tmp_path: Path, start: Start) -> None:
    processes = [start("race", tmp_path, 10) for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (0, "")
        assert int(out) >= 1
    assert len(files(tmp_path)) == 1
