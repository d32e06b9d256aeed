"""The data channel: payloads on TCP connections of their own, beside the calls of gRPC.

A connection, the transfer of a payload over it, its encryption and the tickets that tie it to a call. Both
ends import it (`varangian.server.transport`, `varangian.worker.transport`); it knows neither of them, and
so a worker can listen to other workers.
"""
