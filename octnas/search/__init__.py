"""The search: one Optuna study, asked and told; no torch."""
