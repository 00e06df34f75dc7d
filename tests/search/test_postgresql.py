"""A study in a real PostgreSQL server, which the test starts: Debian's package `postgresql`."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from octnas.errors import SearchError
from octnas.search.local import run_local
from octnas.search.storage import open_storage
from tests.search.conftest import SETTINGS, Make, table
from tests.search.small import loss_of

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PASSWORD = "s3cret"
# The server refuses to run as root; Debian's package makes this user.
USER = "postgres" if os.geteuid() == 0 else None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server on the loopback interface."""
    folder = Path(tempfile.mkdtemp(prefix="octnas-"))
    if USER:
        shutil.chown(folder, USER)
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, program = folder / "data", PROGRAMS[-1]
    made = ["-U", "octnas", "-A", "scram-sha-256", f"--pwfile={password}", "-D", str(data)]
    subprocess.run([program / "initdb", *made], user=USER, check=True, stdout=subprocess.DEVNULL)
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    log = (folder / "log").open("w")
    with (
        log,
        subprocess.Popen(
            [program / "postgres", "-D", data, "-p", str(port), *options], user=USER, stderr=log
        ) as server,
    ):
        try:
            ready = [program / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            end = time.monotonic() + 60
            while subprocess.run(ready, check=False).returncode:
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"postgresql://octnas:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # SIGTERM would wait for the clients
            server.wait()
            shutil.rmtree(folder)


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
    assert again.told == 8
    run_local(again, loss_of)
    assert again.done
    assert table(again.candidates()) == table(journal.candidates())


def test_a_wrong_password_is_one_clear_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="password authentication failed") as caught:
        open_storage(url.replace(PASSWORD, "wr0ng"), tmp_path / "unused")
    assert "\n" not in str(caught.value)
    assert "wr0ng" not in str(caught.value)
