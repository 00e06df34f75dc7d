"""A study in a real PostgreSQL server, which the test starts: Debian's package `postgresql`."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from octnas.errors import SearchError
from octnas.results.front import Candidate
from octnas.search.storage import open_storage, opened
from octnas.search.study import Driver, run_local
from octnas.space.search_space import SearchSpace
from tests.search.conftest import SETTINGS, Make, table
from tests.search.small import loss_of, small_driver

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PASSWORD = "s3cret"
# The server refuses to run as root; Debian's package makes this user.
USER = "postgres" if os.geteuid() == 0 else None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed"),
]


class Server:
    """A server on the loopback interface, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self._port = str(free.getsockname()[1])
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        made = ["-U", "octnas", "-A", "scram-sha-256", f"--pwfile={password}"]
        command = [PROGRAMS[-1] / "initdb", *made, "-D", str(folder / "data")]
        subprocess.run(command, user=USER, check=True, stdout=subprocess.DEVNULL)
        self.url = f"postgresql://octnas:{PASSWORD}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        where = ["-D", self._folder / "data", "-p", self._port]
        options = ["-c", "listen_addresses=127.0.0.1"]
        options += ["-c", f"unix_socket_directories={self._folder}"]
        with (self._folder / "log").open("a") as log:
            command = [PROGRAMS[-1] / "postgres", *where, *options]
            self._process = subprocess.Popen(command, user=USER, stderr=log)
        ready = [PROGRAMS[-1] / "pg_isready", "-q", "-h", "127.0.0.1", "-p", self._port]
        end = time.monotonic() + 60
        while subprocess.run(ready, check=False).returncode:
            assert time.monotonic() < end, (self._folder / "log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it; its clients lose their connections."""
        self._process.send_signal(signal.SIGINT)  # SIGTERM would wait for the clients
        self._process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="octnas-"))
    if USER:
        shutil.chown(folder, USER)
    made = Server(folder)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder)


@pytest.fixture
def url(server: Server) -> str:
    return server.url


def test_a_search_in_postgresql_is_that_of_the_journal(make_driver: Make, url: str) -> None:
    """In one go, and broken off in the middle of a batch."""
    journal = make_driver(folder="journal")
    run_local(journal, loss_of)
    settings = replace(SETTINGS, storage=url)
    begun = make_driver(settings, folder="begun")
    for number in range(11):
        job = begun.ask()
        assert job is not None
        if number != 9:
            begun.tell(job.number, loss_of(job.alphas))
    again = make_driver(settings, folder="begun")
    assert again.reported == 8
    run_local(again, loss_of)
    assert again.done
    assert table(again.candidates()) == table(journal.candidates())


def test_a_wrong_password_is_one_clear_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="password authentication failed") as caught:
        open_storage(url.replace(PASSWORD, "wr0ng"), tmp_path / "unused")
    assert "\n" not in str(caught.value)
    assert "wr0ng" not in str(caught.value)


def test_a_server_that_stops_in_mid_search(
    make_driver: Make, server: Server, space: SearchSpace, tmp_path: Path
) -> None:
    """One line, and once it runs again, the search resumes.

    Only the evaluation that could not be stored is repeated.
    """
    journal = make_driver(folder="journal")
    run_local(journal, loss_of)
    evaluated: list[str] = []

    def evaluate(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
        if len(evaluated) == 9:
            server.stop()
        evaluated.append(space.architecture(alphas).id)
        return loss_of(alphas)

    def search() -> list[Candidate]:
        place = tmp_path / "stopped"
        place.mkdir(exist_ok=True)
        with opened(server.url, place / "unused") as storage:
            # Other tests use the same database.
            driver = small_driver(space, SETTINGS, storage, study="stopped", kind=Driver)
            run_local(driver, evaluate)
            return driver.candidates()

    with pytest.raises(SearchError, match="the same command resumes") as caught:
        search()
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    with pytest.raises(SearchError, match="cannot be opened"):
        search()
    server.start()
    assert table(search()) == table(journal.candidates())
    assert evaluated[10] == evaluated[9]
    assert len(evaluated) - 1 == len(set(evaluated)) == len(journal.candidates())
