"""Architectures, their costs and the search space; without torch."""
