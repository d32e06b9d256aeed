"""The vectors of many workers of a round in one call, for a simulation.

`compute` does for all workers what `varangian.worker.training.compute` does for one; `gradients` has the
ways to get many gradients at once, and `pooled` the fastest. The launcher imports it.
"""
