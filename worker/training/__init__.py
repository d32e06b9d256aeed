"""The computation of workers: from parameters to the vector that is sent.

Model, loss, metrics, momentum, error feedback, and the task that puts them together, attacks included.
`varangian.worker.loop` and `host`, the configuration and the launcher import it; it knows no network.
"""
