"""What a search and its trainings found; without torch."""
