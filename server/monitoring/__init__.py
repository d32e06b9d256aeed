"""Monitoring: a page about the run, and metrics for Prometheus, read-only over HTTP.

It has a port of its own, so that whoever can reach it reaches no call of a run. `http` takes connections
and bounds what they cost, `access` decides who may look, and `monitoring` opens the port. Who answers a
path is handed in; nothing here imports `transport`, `rounds` or torch.
"""
