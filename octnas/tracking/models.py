"""Trained networks as MLflow models: saved without pickle, registered once per weights."""

import logging
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from octnas.runtime.temporary import level
from octnas.tracking.connection import OUTBOX_TAG, Connection
from octnas.tracking.outbox import Entry
from octnas.tracking.store import import_mlflow

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

WEIGHTS_TAG = "octnas.weights"


def registered_name(experiment: str) -> str:
    """The experiment's name with only characters that registered models may have."""
    return re.sub(r"[/:'\"]", "_", experiment)  # a quote would end a filter string


def logged_name(name: str) -> str:
    """A name with only characters that logged models may have, which excludes dots."""
    return re.sub(r"[/:.%'\"]", "-", name)


def save_model(network: "nn.Module", images: "Tensor", folder: Path) -> None:
    """Save a network as an MLflow model that loads without pickle and without octnas.

    The model is a ``torch.export`` program for any batch size, with signature and input example.

    Args:
        network: in eval mode.
        images: an example, ``(N, C, H, W)`` with N at least 2: ``torch.export`` would specialize
            on a batch of 1.
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
            # Otherwise MLflow loads the model in another process to infer them.
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                f"numpy=={np.__version__}",
            ],
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence MLflow's warnings about its own types and about the given requirements."""
    with level(logging.getLogger("mlflow"), logging.ERROR), warnings.catch_warnings():
        for category in (UserWarning, DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def send_model(connection: Connection, entry: Entry) -> None:
    """Log a model in its run, register it, and point its alias to it; what is there stays."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.exceptions import MlflowException

    client, run_id, values = connection.client, connection.run_id(entry), entry.values
    name, query = values["registered"], f"tags.`{WEIGHTS_TAG}` = '{values['digest']}'"
    tags = {**values["tags"], WEIGHTS_TAG: values["digest"], OUTBOX_TAG: connection.outbox.id}
    found = client.search_logged_models([connection.experiment_id], filter_string=query)
    logged = next((one for one in found if one.source_run_id == run_id), None)
    if logged is None:
        logged = client.create_logged_model(
            connection.experiment_id, name=values["name"], source_run_id=run_id, tags=tags
        )
    if logged.status != LoggedModelStatus.READY:
        client.log_model_artifacts(logged.model_id, str(connection.file(entry)))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}' and {query}")
    own = [one for one in versions if one.run_id == run_id]
    version = min(own, key=lambda one: int(one.version), default=None)
    if version is None:
        version = client.create_model_version(
            name,
            # Not "models:/ID", which a database store would look up in MLflow's global store.
            source=logged.artifact_location,
            run_id=run_id,
            tags=tags,
            model_id=logged.model_id,
            await_creation_for=0,  # the default is up to five minutes
        )
    if values["alias"]:
        client.set_registered_model_alias(name, values["alias"], version.version)


def remove_duplicate_models(connection: Connection) -> int:
    """Delete models and model versions that a slow server has created twice; their number."""
    client, removed = connection.client, 0
    query = f"tags.`{OUTBOX_TAG}` = '{connection.outbox.id}'"
    models = [entry for entry in connection.outbox.entries() if entry.kind == "model"]
    for name in {entry.values["registered"] for entry in models}:
        if not client.search_registered_models(f"name = '{name}'"):
            continue  # the store has refused all its models
        aliases = client.get_registered_model(name).aliases.values()
        versions = client.search_model_versions(f"name = '{name}' and {query}")
        for version in duplicates(
            sorted(versions, key=lambda one: int(one.version)),
            lambda one: (one.tags.get(WEIGHTS_TAG), one.run_id),
            lambda one: str(one.version) in map(str, aliases),  # noqa: B023  called here
        ):
            client.delete_model_version(name, version.version)
            removed += 1
    if models:
        logged = client.search_logged_models([connection.experiment_id], filter_string=query)
        for one in duplicates(
            logged,
            lambda one: (one.tags.get(WEIGHTS_TAG), one.source_run_id),
            lambda one: one.status == "READY",
        ):
            client.delete_logged_model(one.model_id)
            removed += 1
    return removed


def duplicates(
    found: Iterable[T], record: Callable[[T], Hashable], in_use: Callable[[T], bool]
) -> list[T]:
    """All but one of what belongs to the same record; of several, one in use is kept."""
    kept: dict[Hashable, T] = {}
    ordered = sorted(found, key=lambda one: not in_use(one))
    return [one for one in ordered if kept.setdefault(record(one), one) is not one]
