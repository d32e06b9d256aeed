"""A round while it runs: one event loop and one compute thread.

`coordinator` carries out what the protocol decides (`_round` is one round), `computation` is what takes
long of it, `executor` the compute thread that it runs in; `pulls` has the workers that wait for a model,
`windowed` the rounds whose rows are not kept whole, `checkpointing` what is kept of a run between two
rounds, `clock` the time. `varangian.server.transport` and the launcher import this room; it imports the
protocol, the rows, training and the records, and never the network.
"""
