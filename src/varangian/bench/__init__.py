"""Measurements: each is taken only of what has been shown to be right."""
