"""Availability and delays of simulated workers.

Pure functions of the seed, the worker and the round, so a run in processes and one in simulation agree. The
configuration builds them, the launcher asks them; they import `varangian.worker.seeds` and nothing else.
"""
