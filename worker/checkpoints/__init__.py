"""The states of a worker on its disk, from which it goes on after a crash, or with a server that went back.

`slots` are files that are written over, `store` keeps those of one part of the history. They know bytes and
rounds; `varangian.worker.training.history` decides what is kept, and imports them.
"""
