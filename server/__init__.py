"""The parameter server: a push comes in, a round closes, the next model goes out.

The stations of a push are rooms: `transport` (gRPC, the data channel) takes the call, `identity` knows
whose it is, `limits` what it may cost, `rounds` runs the round, `protocol` decides who counts (no I/O),
`participation` says how workers come together to rounds, `rows` holds their vectors, `training` makes the
step, `observability` records it, `monitoring` shows it, and `process` looks after the process. `app` opens
the ports and puts all of it together.

Imports point one way: app > transport, monitoring > rounds, participation > rows, observability > protocol,
training, identity, limits, process. Above all of this is `varangian.config`; nothing here imports
`varangian.worker`.
"""
