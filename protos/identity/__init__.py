"""Identity: bundles of a certificate, its key and the authority, and lists of revoked certificates.

The server, workers and the commands that make certificates (`varangian.pki`) read them. It imports nothing
of the package but file descriptors, so that a health check starts quickly.
"""
