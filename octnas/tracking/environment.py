"""What MLflow is told by environment variables, before it is imported."""

import os
from collections.abc import Mapping
from types import MappingProxyType, ModuleType

FORCED: Mapping[str, str] = MappingProxyType(
    {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # At the end of a run MLflow prints the server's URL, password included.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # MLflow's 7 retries, 120 s each, are minutes for one call to a dead server. And a request
        # that a slow server carries out after its time was over would be carried out twice: the
        # sender tries again itself, after a look at what is there.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
)

DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds without any byte, not for a whole upload
        "PGCONNECT_TIMEOUT": "10",  # PostgreSQL's client waits for minutes otherwise
        # Creating a database says several lines at INFO.
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_DISABLE_AGENT_HINT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
)


def import_mlflow() -> ModuleType:
    """Import MLflow with telemetry off, short waits and no chatter; takes seconds at first.

    What the user has set stays, except for telemetry and retries.
    """
    os.environ.update(FORCED)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.telemetry import set_telemetry_client

    # It may have been imported before without these variables; then its client is there already.
    set_telemetry_client()
    return mlflow
