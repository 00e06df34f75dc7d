"""A thread that sends an outbox while the work goes on."""

import threading
import time
from pathlib import Path

from octnas.errors import TrackingError
from octnas.tracking.connection import Connection, open_connection
from octnas.tracking.failures import AwayError, tracking_errors
from octnas.tracking.outbox import BusyError, Outbox
from octnas.tracking.sending import send, settle
from octnas.tracking.stores import SERVERS, Store

# Seconds between two tries to reach a store that is away: at first, doubled each time, at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
# Seconds that the first record waits for what the store says of itself. A server has an answer
# within the first; to create a database takes longer.
FIRST_WAIT, FIRST_WAIT_DATABASE = 6.0, 90.0


class Sender:
    """Sends what an outbox holds, and goes on whenever there is more.

    A store that is away is tried again, ever more seldom; the thread never outlives its process.

    Attributes:
        problem: why the last try has failed; None if it has not.
    """

    def __init__(self, store: Store, experiment: str, outbox: Outbox, progress_file: Path) -> None:
        """Begin to send.

        Args:
            store: where to.
            experiment: MLflow's name of it.
            outbox: the records.
            progress_file: remembers how far they were sent.
        """
        self.problem: TrackingError | None = None
        self._store, self._experiment = store, experiment
        self._outbox, self._progress_file = outbox, progress_file
        self._connection: Connection | None = None
        self._more, self._tried, self._ending = (threading.Event() for _ in range(3))
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="octnas-mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is more to send."""
        self._more.set()

    def first_answer(self) -> AwayError | None:
        """Wait a moment for the first try.

        Returns:
            Why the store is away; None where it is not, or is slow.

        Raises:
            TrackingError: it cannot be used, so that something has to be changed.
        """
        self._tried.wait(FIRST_WAIT if self._store.kind in SERVERS else FIRST_WAIT_DATABASE)
        problem = self.problem
        if problem is None or isinstance(problem, AwayError | BusyError):
            return problem if isinstance(problem, AwayError) else None
        self.close(0)
        raise problem

    def close(self, seconds: float) -> None:
        """Send what is left, in at most so many seconds; what is on its way then is not waited for.

        A store that is away is tried once more.
        """
        self._deadline = time.monotonic() + seconds
        self._ending.set()
        self._more.set()
        self._thread.join(seconds)
        self._deadline = 0.0

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            ending = self._ending.is_set()
            self._more.clear()
            self._try(ending)
            self._tried.set()
            if ending:
                return
            if self.problem is None:
                pause = FIRST_PAUSE
                self._more.wait()
            else:
                self._ending.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            if not self._in_time():
                return

    def _in_time(self) -> bool:
        return time.monotonic() < self._deadline

    def _try(self, ending: bool) -> None:
        try:
            with tracking_errors(self._store), self._outbox.sending():
                if self._connection is None:
                    self._connection = open_connection(
                        self._store, self._experiment, self._outbox, self._progress_file
                    )
                send(self._connection, self._in_time)
                if ending and self._in_time():
                    settle(self._connection)
            self.problem = None
        except TrackingError as error:
            # Another process may have sent meanwhile, or another server may answer.
            self._connection, self.problem = None, error
