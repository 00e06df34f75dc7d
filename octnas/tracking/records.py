"""Send the records of an outbox to MLflow, in order.

Sending a record twice leaves one: runs are found by the id of the record that created them, known
parameters and tags stay, MLflow's stores treat a metric of the same step, value and time as the
same metric, artifacts replace themselves, and models are found by the digest of their weights.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING

from octnas.tracking.connection import OUTBOX_TAG, Connection
from octnas.tracking.models import duplicates, remove_duplicate_models, send_model
from octnas.tracking.outbox import LONGEST_NAME, Entry, clean_key, cut
from octnas.tracking.store import is_refusal, reason, tracking_errors

if TYPE_CHECKING:
    from mlflow.entities import Run

METRICS = "metrics"
# Records whose metrics are sent together; MLflow's client splits them into calls of 1,000 metrics.
_GROUP = 500

PARENT_TAG = "mlflow.parentRunId"
SUPERSEDED_TAG = "octnas.superseded"
CHANGED_TAG = "octnas.changed."
RECORD_TAG = "octnas.record"


def send(connection: Connection, proceed: Callable[[], bool] = lambda: True) -> Counter[str]:
    """Send what was not sent yet; after each record the position is on disk.

    Stops before a record for which ``proceed`` returns False.

    Returns:
        The number of records by kind; for metrics, the number of values.

    Raises:
        AwayError: the store does not answer any more.
        TrackingError: it can no longer be used; for example, it refuses access.
    """
    sent: Counter[str] = Counter()
    with tracking_errors(connection.store):
        connection.progress.read()
        for group in _groups(connection.outbox.entries(connection.progress.sent)):
            if not proceed():
                break
            sent += _send_group(connection, group)
    return sent


def remove_duplicates(connection: Connection) -> int:
    """Delete duplicates that a slow server created, once everything is sent.

    A server may carry out a request long after its client has timed out and sent another one.

    Returns:
        The number of runs, models and model versions that were deleted.

    Raises:
        TrackingError: see `send`.
    """
    progress, removed = connection.progress, 0

    def in_use(run: "Run") -> bool:
        return run.info.run_id in progress.runs.values() or SUPERSEDED_TAG in run.data.tags

    with tracking_errors(connection.store):
        runs = _tagged(connection, OUTBOX_TAG, connection.outbox.id)
        for run in duplicates(runs, lambda run: run.data.tags.get(RECORD_TAG), in_use):
            connection.client.delete_run(run.info.run_id)
            removed += 1
        return removed + remove_duplicate_models(connection)


def _groups(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Consecutive metrics of one run together, everything else alone."""
    for (kind, _), same in groupby(entries, key=lambda entry: (entry.kind, entry.key)):
        while group := list(islice(same, _GROUP if kind == METRICS else 1)):
            yield group


def _send_group(connection: Connection, group: Sequence[Entry]) -> Counter[str]:
    """Send records; one that the store refuses is noted and does not stop the next ones."""
    first, progress = group[0], connection.progress
    try:
        if first.kind == METRICS:
            count = _send_metrics(connection, group)
        else:
            SEND[first.kind](connection, first)
            count = 1
    except Exception as error:
        if not is_refusal(error):
            raise
        if len(group) > 1:
            return sum((_send_group(connection, [entry]) for entry in group), Counter[str]())
        progress.refuse(first, reason(error, connection.store))
        return Counter()
    progress.advance(group[-1].end)
    connection.outbox.discard(first)
    return Counter({first.kind: count})


def _send_metrics(connection: Connection, group: Sequence[Entry]) -> int:
    """Send metrics of one run, without those steps of a metric that the run already has."""
    from mlflow.entities import Metric

    run_id = connection.run_id(group[0])
    metrics: list[Metric] = []
    steps: dict[str, set[int]] = {}
    for entry in group:
        for step, values in entry.values["rows"]:
            for name, value in values.items():
                key = clean_key(name)
                if key not in steps:
                    steps[key] = set(connection.steps(run_id, key))
                if step not in steps[key]:
                    steps[key].add(step)
                    metrics.append(Metric(key, float(value), entry.time, step))
    connection.client.log_batch(run_id, metrics=metrics)
    for key, known in steps.items():
        connection.steps(run_id, key).update(known)
    return len(metrics)


def _send_artifact(connection: Connection, entry: Entry) -> None:
    """Store a file, or a folder under its name."""
    run_id, folder = connection.run_id(entry), entry.values["folder"]
    connection.client.log_artifact(run_id, str(connection.file(entry)), folder or None)


def _send_tags(connection: Connection, entry: Entry) -> None:
    from mlflow.entities import RunTag

    tags = [RunTag(name, text) for name, text in entry.values["tags"].items()]
    connection.client.log_batch(connection.run_id(entry), tags=tags)


def _send_finish(connection: Connection, entry: Entry) -> None:
    status = "FAILED" if entry.values["failed"] else "FINISHED"
    connection.client.set_terminated(connection.run_id(entry), status=status, end_time=entry.time)


def _send_start(connection: Connection, entry: Entry) -> None:
    """Resume the run of the record's key, or create it."""
    from mlflow.entities import Param, RunTag

    values, client = entry.values, connection.client
    name, tags = cut(values["name"], LONGEST_NAME), dict(values["tags"])
    if (parent := values["parent"]) is not None:
        tags[PARENT_TAG] = connection.progress.runs.get(parent, "")
    run = _active(connection, entry.key)
    if run is not None and values["again"] and run.data.tags.get(RECORD_TAG) != entry.id:
        client.set_tag(run.info.run_id, SUPERSEDED_TAG, "true")
        if run.info.status == "RUNNING":  # its process died
            client.set_terminated(run.info.run_id, status="KILLED")
        run = None
    if run is None:
        # This record may have created it already, if the answer was lost.
        found = _tagged(connection, RECORD_TAG, entry.id)
        own = {**tags, RECORD_TAG: entry.id, OUTBOX_TAG: connection.outbox.id}
        experiment = connection.experiment_id
        run = found[0] if found else client.create_run(experiment, entry.time, own, name)
        connection.progress.set_run(entry.key, run.info.run_id)
    if (run.info.status, run.info.run_name) != ("RUNNING", name):
        client.update_run(run.info.run_id, status="RUNNING", name=name)
    known = run.data.params
    for key, text in values["params"].items():
        if known.get(key, text) != text:  # MLflow never changes a parameter
            tags[clean_key(CHANGED_TAG + key)] = text
    client.log_batch(
        run.info.run_id,
        params=[Param(key, text) for key, text in values["params"].items() if key not in known],
        tags=[RunTag(key, text) for key, text in tags.items() if run.data.tags.get(key) != text],
    )


def _active(connection: Connection, key: str) -> "Run | None":
    """The run known under ``key``, unless it was deleted in MLflow."""
    run_id = connection.progress.runs.get(key)
    run = connection.find_run(run_id) if run_id else None
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def _tagged(connection: Connection, tag: str, value: str) -> "list[Run]":
    query = f"tags.`{tag}` = '{value}'"
    return list(
        connection.client.search_runs(
            [connection.experiment_id], filter_string=query, max_results=1000
        )
    )


SEND: Mapping[str, Callable[[Connection, Entry], None]] = {
    "start": _send_start,
    "finish": _send_finish,
    "artifact": _send_artifact,
    "tags": _send_tags,
    "model": send_model,
}
"""What sends a record, by kind; metrics are sent in groups."""
