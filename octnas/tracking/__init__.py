"""MLflow: the runs of one run directory."""
