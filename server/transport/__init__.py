"""Everything of the server that touches gRPC or a socket: calls in, replies and payloads out.

`service` has the calls, `call_admission` what comes before any message is read, `uploads` and `downloads`
the payloads. It asks `rounds` what to do and never decides about a round. Only `varangian.server.app`, the
launcher and benchmarks import it.
"""
