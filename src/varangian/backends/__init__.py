"""Ways to carry a run out: real processes over gRPC, or one process without sockets."""
