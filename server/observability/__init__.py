"""Observability: the record of each round, and the status of a run.

The rounds fill them; the transport and the launcher read them. It imports the protocol and the training.
"""
