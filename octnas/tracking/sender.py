"""A thread that sends the outbox while the run continues."""

import threading
import time
from pathlib import Path

from octnas.errors import TrackingError
from octnas.tracking.connection import Connection, open_connection
from octnas.tracking.outbox import BusyError, Outbox
from octnas.tracking.records import remove_duplicates, send
from octnas.tracking.store import SERVERS, AwayError, Store, tracking_errors

# Seconds between two tries to reach a store: the first pause, doubled up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# Seconds that the first record waits for the first try: a server has `FIRST_ANSWER`; creating a
# database takes longer.
FIRST_WAIT, FIRST_WAIT_DATABASE = 6.0, 90.0


class Sender:
    """Sends the records of an outbox, also those that are added later.

    An unreachable store is tried again at growing intervals. The thread never outlives its process.

    Attributes:
        problem: why the last try failed; None if it did not.
    """

    def __init__(self, store: Store, experiment: str, outbox: Outbox, progress_file: Path) -> None:
        """Start to send to the MLflow experiment ``experiment``."""
        self.problem: TrackingError | None = None
        self._store, self._experiment = store, experiment
        self._outbox, self._progress_file = outbox, progress_file
        self._connection: Connection | None = None
        self._more, self._tried, self._closing = (threading.Event() for _ in range(3))
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="octnas-mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There are more records."""
        self._more.set()

    def first_answer(self) -> AwayError | None:
        """Wait for the first try, for a bounded time.

        Returns:
            Why the store is unreachable; None if it is not, or is slow.

        Raises:
            TrackingError: the store cannot be used until the user changes something.
        """
        self._tried.wait(FIRST_WAIT if self._store.kind in SERVERS else FIRST_WAIT_DATABASE)
        problem = self.problem
        if isinstance(problem, AwayError):
            return problem
        if problem is None or isinstance(problem, BusyError):
            return None
        self.close(0)
        raise problem

    def close(self, seconds: float) -> None:
        """Send the remaining records, for at most ``seconds``; an unreachable store is tried once.

        A request that is on its way by then is not waited for.
        """
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self._more.set()
        self._thread.join(seconds)
        self._deadline = 0.0

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            closing = self._closing.is_set()
            self._more.clear()
            self._try(closing)
            self._tried.set()
            if closing:
                return
            if self.problem is None:
                pause = FIRST_PAUSE
                self._more.wait()
            else:
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            if not self._in_time():
                return

    def _in_time(self) -> bool:
        return time.monotonic() < self._deadline

    def _try(self, closing: bool) -> None:
        try:
            with tracking_errors(self._store), self._outbox.sending():
                if self._connection is None:
                    self._connection = open_connection(
                        self._store, self._experiment, self._outbox, self._progress_file
                    )
                send(self._connection, self._in_time)
                if closing and self._in_time():
                    remove_duplicates(self._connection)
            self.problem = None
        except TrackingError as error:
            # Another process may send meanwhile, or another server may answer.
            self._connection, self.problem = None, error
