"""Monitoring of a run: what the metrics port of its server shows."""
