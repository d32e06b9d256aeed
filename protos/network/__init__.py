"""Settings of connections: addresses, gRPC channels and options, idle time-outs, sizes of chunks.

Also what goes with them in a process: file descriptors, the C allocator, gRPC's own log. The server, the
worker, the launcher and the command line import it; it imports nothing but `varangian.protos.messages`.
"""
