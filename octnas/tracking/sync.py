"""Sending what a run could not send, once its store is back."""

from collections import Counter
from pathlib import Path

from octnas.errors import TrackingError
from octnas.tracking.connection import open_connection
from octnas.tracking.environment import import_mlflow
from octnas.tracking.outbox import BusyError, Outbox
from octnas.tracking.progress import FILE, read_progress, unsent
from octnas.tracking.sending import send, settle
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.stores import SERVERS, find_store
from octnas.tracking.tracker import FOLDER

BUSY_WAIT = 10.0  # seconds that another sender of the same run directory may take


def sync_runs(settings: TrackingSettings, experiment: str, directory: Path) -> tuple[str, ...]:
    """Send what is left in the outbox of a run directory.

    Args:
        settings: section ``tracking`` of the experiment.
        experiment: name of the MLflow experiment if the settings give none.
        directory: of the run.

    Returns:
        Lines that say what was sent, and what was refused.

    Raises:
        TrackingError: the store is away or cannot be used; then nothing is lost.
    """
    if not settings.enabled:
        raise TrackingError(f"{directory}: tracking.enabled: found false, so nothing is recorded")
    store = find_store(settings, directory.resolve().parent)
    outbox, file = Outbox(directory / FOLDER), directory / FILE
    left, nothing = unsent(outbox, file, store.shown), f"nothing to send to {store.shown}"
    # A server may have carried out something twice long after all was sent, a database does not.
    if not left and not (store.kind in SERVERS and read_progress(file).get("runs")):
        return (nothing,)
    import_mlflow()
    try:
        with outbox.sending(BUSY_WAIT):
            connection = open_connection(store, settings.experiment or experiment, outbox, file)
            refused = len(connection.progress.refused)
            sent = send(connection)
            doubles = settle(connection)
    except BusyError:
        raise
    except TrackingError as error:
        if not left:
            return (f"{nothing}; what it may have been told twice was not looked for: {error}",)
        still = unsent(outbox, file, store.shown)
        raise TrackingError(f"{error}; sent {left - still} records, {still} are kept") from None
    lines = [f"sent to {store.shown}: {_counted(sent)}" if sent else nothing]
    if doubles:
        lines.append(f"removed {doubles} runs and models that the server had made twice")
    if why := connection.progress.refused[refused:]:
        lines.append(f"refused {len(why)} records, see {file}; the first one: {why[0]['why']}")
    return tuple(lines)


def _counted(sent: Counter[str]) -> str:
    words = {"start": "runs", "metrics": "metric values", "artifact": "artifacts"}
    words |= {"model": "models", "finish": "ends of runs"}
    found = [f"{sent[kind]} {word}" for kind, word in words.items() if sent[kind]]
    return ", ".join(found) or "nothing"
