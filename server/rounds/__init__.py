"""A round while it runs: one event loop and one compute thread.

`coordinator` performs what the protocol decides, `executor` computes, `pulls` has the workers that wait for
a model, `clock` the time. `varangian.server.transport` and the launcher import it; it imports the protocol,
the rows, the model and the records, and never the network.
"""
