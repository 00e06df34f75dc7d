"""Settings of MLflow, importable without MLflow."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Section ``tracking``: records in MLflow.

    Attributes:
        enabled: whether to record the run in MLflow.
        uri: tracking URI of a server (``http://host:5000``) or a database
            (``sqlite:////absolute/path/mlflow.db``, ``postgresql://…``). Empty for
            ``MLFLOW_TRACKING_URI`` from the environment or, if that is not set, ``mlflow.db`` in
            the parent folder of the run directory (``runs/``). With a database, artifacts go to
            ``runs/mlartifacts``; a server has its own storage.
        experiment: name of the MLflow experiment; empty for the ``name`` of this experiment.
    """

    enabled: bool = True
    uri: str = field(default="", repr=False)  # may hold a password
    experiment: str = ""
