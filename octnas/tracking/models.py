"""Trained networks as MLflow models: written without pickle, registered by their weights."""

import logging
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from octnas.tracking.connection import Connection
from octnas.tracking.outbox import Entry
from octnas.tracking.runs import OUTBOX_TAG, outbox_id
from octnas.tracking.store import import_mlflow

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion
    from torch import Tensor, nn

T = TypeVar("T")

WEIGHTS_TAG = "octnas.weights"


_REFUSED_REGISTERED = re.compile(r"[/:'\"]")  # or what would end a search for it
_REFUSED_LOGGED = re.compile(r"[/:.%'\"]")


def registered_name(experiment: str) -> str:
    """The experiment's name as a registered model may be called."""
    return _REFUSED_REGISTERED.sub("_", experiment)


def logged_name(name: str) -> str:
    """A name as a logged model may have it: without a point."""
    return _REFUSED_LOGGED.sub("-", name)


def save_model(network: "nn.Module", images: "Tensor", folder: Path) -> None:
    """Write a network as an MLflow model that needs neither pickle nor octnas to be loaded.

    It is the graph that ``torch.export`` traces, of the network as it is, and for any number of
    images; with signature and input example.

    Args:
        network: in eval mode.
        images: an example, ``(N, C, H, W)`` with N at least 2: a single one would be taken for
            the only number that is allowed.
        folder: must not exist.
    """
    import numpy as np
    import torch

    import_mlflow()
    with _quiet():
        import mlflow.pytorch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        with torch.no_grad():
            logits = network(images)
        specs = [
            Schema([TensorSpec(np.dtype(np.float32), (-1, *tensor.shape[1:]))])
            for tensor in (images, logits)
        ]
        mlflow.pytorch.save_model(
            network,
            str(folder),
            signature=ModelSignature(inputs=specs[0], outputs=specs[1]),
            input_example=images.numpy(),
            serialization_format="pt2",
            # Else MLflow would load the model in another process to find out.
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                f"numpy=={np.__version__}",
            ],
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what MLflow says of its own types, and of the requirements that it is given."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def send_model(connection: Connection, entry: Entry) -> None:
    """Log a model in its run, register it, and let its alias point to it."""
    values = entry.values
    logged = _logged(connection, entry)
    _register_name(connection, values["registered"])
    version = _version(connection, entry) or _new_version(connection, entry, logged)
    if values["alias"]:
        connection.client.set_registered_model_alias(
            values["registered"], values["alias"], version.version
        )


def remove_double_models(connection: Connection) -> int:
    """Delete what a slow server has created a second time, see `remove_double_runs`."""
    outbox, client, removed = outbox_id(connection), connection.client, 0
    models = [entry for entry in connection.outbox.entries() if entry.kind == "model"]
    for name in {entry.values["registered"] for entry in models}:
        if not client.search_registered_models(f"name = '{name}'"):
            # The store has refused all that would have been registered.
            continue
        aliased = {str(version) for version in client.get_registered_model(name).aliases.values()}
        versions = client.search_model_versions(
            f"name = '{name}' and tags.`{OUTBOX_TAG}` = '{outbox}'"
        )
        ordered = sorted(
            versions, key=lambda one: (str(one.version) not in aliased, int(one.version))
        )
        for double in _doubles(ordered, lambda one: (one.tags.get(WEIGHTS_TAG), one.run_id)):
            client.delete_model_version(name, double.version)
            removed += 1
    if models:
        logged = client.search_logged_models(
            [connection.experiment_id], filter_string=f"tags.`{OUTBOX_TAG}` = '{outbox}'"
        )
        in_use = sorted(logged, key=lambda one: one.status != "READY")
        for one in _doubles(in_use, lambda one: (one.tags.get(WEIGHTS_TAG), one.source_run_id)):
            client.delete_logged_model(one.model_id)
            removed += 1
    return removed


def _doubles(found: Iterable[T], record: Callable[[T], Hashable]) -> list[T]:
    """All but the first of each record."""
    first: dict[Hashable, T] = {}
    return [one for one in found if first.setdefault(record(one), one) is not one]


def _logged(connection: Connection, entry: Entry) -> "LoggedModel":
    """The run's model, logged unless it is there."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client, run_id = connection.client, connection.run_id(entry)
    logged = _find_logged(connection, entry) or client.create_logged_model(
        connection.experiment_id,
        name=entry.values["name"],
        source_run_id=run_id,
        tags=_tags(connection, entry),
    )
    if logged.status != LoggedModelStatus.READY:
        client.log_model_artifacts(logged.model_id, str(connection.file(entry)))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return logged


def _find_logged(connection: Connection, entry: Entry) -> "LoggedModel | None":
    run_id = connection.run_id(entry)
    found = connection.client.search_logged_models(
        [connection.experiment_id],
        filter_string=f"tags.`{WEIGHTS_TAG}` = '{entry.values['digest']}'",
    )
    return next((one for one in found if one.source_run_id == run_id), None)


def _register_name(connection: Connection, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        connection.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(connection: Connection, entry: Entry) -> "ModelVersion | None":
    name, digest = entry.values["registered"], entry.values["digest"]
    found = connection.client.search_model_versions(
        f"name = '{name}' and tags.`{WEIGHTS_TAG}` = '{digest}'"
    )
    own = [one for one in found if one.run_id == connection.run_id(entry)]
    return min(own, key=lambda one: int(one.version), default=None)


def _new_version(connection: Connection, entry: Entry, logged: "LoggedModel") -> "ModelVersion":
    return connection.client.create_model_version(
        entry.values["registered"],
        # Not "models:/ID", which a database store would look up in MLflow's global store.
        source=logged.artifact_location,
        run_id=connection.run_id(entry),
        tags=_tags(connection, entry),
        model_id=logged.model_id,
        await_creation_for=0,  # else up to five minutes
    )


def _tags(connection: Connection, entry: Entry) -> dict[str, str]:
    own = {WEIGHTS_TAG: entry.values["digest"], OUTBOX_TAG: outbox_id(connection)}
    return {**entry.values["tags"], **own}
