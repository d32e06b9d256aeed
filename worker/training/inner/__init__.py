"""Local steps with an optimizer of the worker's own, as in DiLoCo.

`steps` takes them, and keeps the state of the optimizer of each worker from round to round.
"""
