"""The process of a server: the garbage collector, and the file that a health check reads.

Nothing here knows of a run. `varangian.server.app` imports it, and so do benchmarks that stand in for it;
it imports nothing of the package.
"""
