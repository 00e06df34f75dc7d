"""A thread that sends an outbox while the work goes on.

Sending an outbox to MLflow, in order, such that what is sent twice is there once.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from octnas.errors import TrackingError
from octnas.tracking.connection import Connection, open_connection
from octnas.tracking.models import remove_double_models, send_model
from octnas.tracking.outbox import BusyError, Entry, Outbox, clean_key
from octnas.tracking.runs import remove_double_runs, send_finish, send_start
from octnas.tracking.store import SERVERS, AwayError, Store, is_refusal, reason, tracking_errors

METRICS = "metrics"
# Records whose metrics go into one call; MLflow's client cuts it into calls of 1,000 metrics.
_TOGETHER = 500


def send(connection: Connection, go_on: Callable[[], bool] = lambda: True) -> Counter[str]:
    """Send what was not sent yet; after each record the position is on disk.

    What is begun once more after its position was lost does no harm: runs are found by the id of
    their record, parameters and tags that are there stay, a metric of the same step, value and
    time is the same metric to MLflow's stores, artifacts replace themselves, and model versions
    are found by the digest of their weights.

    Args:
        connection: to the store.
        go_on: whether to go on, asked before each record.

    Returns:
        How many records were sent, by kind; of metrics, how many values.

    Raises:
        AwayError: the store does not answer any more.
        TrackingError: it lets nobody in any more, for example.
    """
    sent: Counter[str] = Counter()
    with tracking_errors(connection.store):
        connection.progress.read()
        for group in _groups(connection.outbox.entries(connection.progress.sent)):
            if not go_on():
                return sent
            sent += _send_group(connection, group)
    return sent


def settle(connection: Connection) -> int:
    """Remove what a slow server has carried out twice; once all is sent.

    Returns:
        How many runs, models and versions of models.

    Raises:
        TrackingError: see `send`.
    """
    with tracking_errors(connection.store):
        return remove_double_runs(connection) + remove_double_models(connection)


def _groups(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Metrics of one run that follow each other together, everything else alone."""
    group: list[Entry] = []
    for entry in entries:
        alike = group and (entry.kind, entry.key) == (METRICS, group[0].key)
        if group and not (alike and group[0].kind == METRICS and len(group) < _TOGETHER):
            yield group
            group = []
        group.append(entry)
    if group:
        yield group


def _send_group(connection: Connection, group: Sequence[Entry]) -> Counter[str]:
    """Send records; what the store refuses is noted, and the next ones are sent."""
    first = group[0]
    try:
        if first.kind == METRICS:
            count = _send_metrics(connection, group)
        else:
            _SEND[first.kind](connection, first)
            count = 1
    except Exception as error:
        if not is_refusal(error):
            raise
        if len(group) > 1:
            return sum((_send_group(connection, [entry]) for entry in group), Counter[str]())
        connection.progress.refuse(first, reason(error, connection.store))
        return Counter()
    connection.progress.advance(group[-1].end)
    connection.outbox.discard(first)
    return Counter({first.kind: count})


def _send_metrics(connection: Connection, group: Sequence[Entry]) -> int:
    """Send the metrics of some records of one run."""
    from mlflow.entities import Metric

    run_id = connection.run_id(group[0])
    metrics: list[Metric] = []
    here: set[tuple[str, int]] = set()
    for entry, step, name, value in _values(group):
        key, once = clean_key(name), entry.values["once"]
        if once and ((key, step) in here or step in _steps(connection, run_id, key)):
            continue
        here.add((key, step))
        metrics.append(Metric(key, float(value), entry.time, step))
    connection.client.log_batch(run_id, metrics=metrics)
    for metric in metrics:
        if (run_id, metric.key) in connection.steps:
            connection.steps[run_id, metric.key].add(metric.step)
    return len(metrics)


def _values(group: Sequence[Entry]) -> Iterator[tuple[Entry, int, str, float | str]]:
    for entry in group:
        for step, values in entry.values["rows"]:
            for name, value in values.items():
                yield entry, int(step), name, value


def _steps(connection: Connection, run_id: str, key: str) -> set[int]:
    """The steps that a run has of a metric; asked for once."""
    if (run_id, key) not in connection.steps:
        history = connection.client.get_metric_history(run_id, key)
        connection.steps[run_id, key] = {entry.step for entry in history}
    return connection.steps[run_id, key]


def _send_artifact(connection: Connection, entry: Entry) -> None:
    """Store a file, or a directory under its name."""
    run_id, folder = connection.run_id(entry), entry.values["folder"]
    connection.client.log_artifact(run_id, str(connection.file(entry)), folder or None)


def _send_tags(connection: Connection, entry: Entry) -> None:
    from mlflow.entities import RunTag

    tags = [RunTag(name, text) for name, text in entry.values["tags"].items()]
    connection.client.log_batch(connection.run_id(entry), tags=tags)


_SEND: Mapping[str, Callable[[Connection, Entry], None]] = {
    "start": send_start,
    "finish": send_finish,
    "artifact": _send_artifact,
    "tags": _send_tags,
    "model": send_model,
}


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
