"""The search: an Optuna study, its samplers and its storage; without torch."""
