"""A store that answers, and what it has of one run directory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from octnas.tracking.connect import connect
from octnas.tracking.failures import RefusedError, tracking_errors
from octnas.tracking.outbox import Entry, Outbox
from octnas.tracking.progress import SentProgress
from octnas.tracking.stores import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass
class Connection:
    """A store that answers, and what it has of one run directory.

    Attributes:
        client: of MLflow.
        store: which one.
        experiment_id: of MLflow.
        outbox: the records.
        progress: how far they were sent.
        steps: those that a run has of a metric, by run id and metric.
    """

    client: "MlflowClient"
    store: Store
    experiment_id: str
    outbox: Outbox
    progress: SentProgress
    steps: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def run_id(self, entry: Entry) -> str:
        """MLflow's id of the run that a record belongs to.

        Raises:
            RefusedError: there is none.
        """
        found = self.progress.get(entry.key)
        if found is None:
            raise RefusedError(f"its run {entry.key!r} is not in MLflow")
        return found

    def file(self, entry: Entry) -> Path:
        """The file of a record.

        Raises:
            RefusedError: it is gone.
        """
        found = self.outbox.file(entry)
        if found is None:
            raise RefusedError(f"{entry.values['path']} is gone")
        return found


def open_connection(
    store: Store, experiment: str, outbox: Outbox, progress_file: Path
) -> Connection:
    """Reach the store.

    Raises:
        AwayError: it does not answer, or not now.
        TrackingError: it cannot be used.
    """
    client, experiment_id = connect(store, experiment)
    progress = SentProgress(progress_file, uri=store.shown, experiment_id=experiment_id)
    with tracking_errors(store):
        if progress.run_ids and not any(_exists(client, one) for one in progress.run_ids):
            # Another database behind the same address: it is told everything.
            progress.forget()
    outbox.discard_all(progress.sent)
    return Connection(client, store, experiment_id, outbox, progress)


def _exists(client: "MlflowClient", run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)  # also one that was deleted, which the store still has
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True
