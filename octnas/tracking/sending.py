"""Sending an outbox to MLflow, in order, such that what is sent twice is there once."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from octnas.tracking.connection import Connection
from octnas.tracking.failures import is_refusal, reason, tracking_errors
from octnas.tracking.models import remove_double_models, send_model
from octnas.tracking.outbox import Entry
from octnas.tracking.runs import remove_double_runs, send_finish, send_start
from octnas.tracking.values import clean_key

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
