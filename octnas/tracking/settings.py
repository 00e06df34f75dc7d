"""Where MLflow runs are recorded."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Section ``tracking`` of an experiment.

    Attributes:
        enabled: whether anything is recorded in MLflow.
        uri: MLflow's tracking URI: a server (``http://host:5000``) or a database
            (``sqlite:////absolute/path/mlflow.db``, ``postgresql://…``). Empty: the environment's
            ``MLFLOW_TRACKING_URI`` if set, else the SQLite file ``mlflow.db`` in the folder that
            holds the run directories (``runs/``), with the artifacts beside it in
            ``runs/mlartifacts``. There go the artifacts too if another database is given; a server
            has a place of its own.
        experiment: the MLflow experiment; empty: the ``name`` of the experiment.
    """

    enabled: bool = True
    uri: str = field(default="", repr=False)  # may hold a password
    experiment: str = ""
