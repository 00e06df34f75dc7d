"""Recording runs in MLflow."""
