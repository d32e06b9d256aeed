"""The worker: pull, compute, push; and the Byzantine workers that do something else.

`loop` is the whole of it, `host` runs several in one process; `transport` is the network, `training` what
is computed, `data` the data sets, `attacks` what Byzantine workers do, `simulation` when they are there and
how late.

Imports point one way: host > loop > training, simulation > data > transport, attacks > seeds. Nothing here
imports `varangian.server`.
"""
