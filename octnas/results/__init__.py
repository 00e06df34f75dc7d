"""Results of searches and trainings; without torch."""
