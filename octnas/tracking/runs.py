"""MLflow runs from the records of an outbox: begun once, gone on with, ended."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from octnas.tracking.connection import Connection
from octnas.tracking.outbox import LONGEST_NAME, Entry, clean_key, cut

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"
SUPERSEDED_TAG = "octnas.superseded"
CHANGED_TAG = "octnas.changed."
RECORD_TAG = "octnas.record"
OUTBOX_TAG = "octnas.outbox"
_MOST = 1000


def send_start(connection: Connection, entry: Entry) -> None:
    """Go on with the run of the record's key, or create it.

    A run carries the id of the record that has created it: it is found by that if the answer to
    its creation was lost.
    """
    values, client = entry.values, connection.client
    tags = dict(values["tags"])
    if (parent := values["parent"]) is not None:
        tags[PARENT_TAG] = connection.progress.get(parent) or ""
    known = _active(connection, entry.key)
    if known is not None and values["again"] and known.data.tags.get(RECORD_TAG) != entry.id:
        _supersede(client, known)
        known = None
    if known is None:
        known = _created(connection, entry) or _create(connection, entry, tags)
        connection.progress.set(entry.key, known.info.run_id)
    name = cut(values["name"], LONGEST_NAME)
    if (known.info.status, known.info.run_name) != ("RUNNING", name):
        client.update_run(known.info.run_id, status="RUNNING", name=name)
    _record(client, known, values["params"], tags)


def send_finish(connection: Connection, entry: Entry) -> None:
    """Set the run's status and its end."""
    status = "FAILED" if entry.values["failed"] else "FINISHED"
    connection.client.set_terminated(connection.run_id(entry), status=status, end_time=entry.time)


def remove_double_runs(connection: Connection) -> int:
    """Delete what a slow server has created a second time.

    It may carry out the creation of a run long after its time was over and the run was created by
    another request.

    Returns:
        How many there were.
    """
    found: dict[str, list[Run]] = {}
    outbox, removed = outbox_id(connection), 0
    for run in _tagged(connection, OUTBOX_TAG, outbox):
        found.setdefault(run.data.tags.get(RECORD_TAG, ""), []).append(run)
    for record, runs in found.items():
        if record and len(runs) > 1:
            runs.sort(key=lambda run: not _is_used(connection, run))
            for double in runs[1:]:
                connection.client.delete_run(double.info.run_id)
                removed += 1
    return removed


def outbox_id(connection: Connection) -> str:
    """What all of an outbox carries in MLflow: the id of its first record."""
    return next((entry.id for entry in connection.outbox.entries()), "")


def _is_used(connection: Connection, run: "Run") -> bool:
    return run.info.run_id in connection.progress.run_ids or SUPERSEDED_TAG in run.data.tags


def _active(connection: Connection, key: str) -> "Run | None":
    """The run known under ``key``, unless it was deleted in MLflow."""
    from mlflow.exceptions import MlflowException

    run_id = connection.progress.get(key)
    if run_id is None:
        return None
    try:
        run = connection.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _created(connection: Connection, entry: Entry) -> "Run | None":
    """The run that this very record has created; its answer may have been lost."""
    return next(iter(_tagged(connection, RECORD_TAG, entry.id)), None)


def _tagged(connection: Connection, tag: str, value: str) -> "list[Run]":
    return list(
        connection.client.search_runs(
            [connection.experiment_id],
            filter_string=f"tags.`{tag}` = '{value}'",
            max_results=_MOST,
        )
    )


def _create(connection: Connection, entry: Entry, tags: Mapping[str, str]) -> "Run":
    own = {RECORD_TAG: entry.id, OUTBOX_TAG: outbox_id(connection)}
    return connection.client.create_run(
        connection.experiment_id,
        start_time=entry.time,
        run_name=cut(entry.values["name"], LONGEST_NAME),
        tags={**tags, **own},
    )


def _supersede(client: "MlflowClient", run: "Run") -> None:
    client.set_tag(run.info.run_id, SUPERSEDED_TAG, "true")
    if run.info.status == "RUNNING":  # its process died
        client.set_terminated(run.info.run_id, status="KILLED")


def _record(
    client: "MlflowClient", run: "Run", params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    """Send parameters and tags that the run does not have yet."""
    from mlflow.entities import Param, RunTag

    known = run.data.params
    new = [Param(name, text) for name, text in params.items() if name not in known]
    changed = {
        clean_key(CHANGED_TAG + name): text
        for name, text in params.items()
        if known.get(name, text) != text
    }
    wanted = {**tags, **changed}
    new_tags = [RunTag(k, v) for k, v in wanted.items() if run.data.tags.get(k) != v]
    client.log_batch(run.info.run_id, params=new, tags=new_tags)
