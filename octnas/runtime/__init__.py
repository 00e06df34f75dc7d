"""A process at work on a run: its directory, lock, progress and signals."""
