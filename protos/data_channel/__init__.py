"""The data channel: payloads on TCP connections of their own, beside the calls of gRPC.

`connection` moves the bytes of a `transfer`, `encrypted_stream` encrypts them, `tickets` tie a payload to
its call, `listener` accepts connections. Both ends import it; it imports neither of them, so a worker can
listen to other workers.
"""
