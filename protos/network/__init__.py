"""Network settings: addresses, sockets, gRPC channels and options, idle time-outs, sizes of chunks.

Also what goes with them in a process: file descriptors, the C allocator, the log of gRPC. The server,
workers, the launcher and the command line import it; it imports nothing but limits on messages.
"""
