"""Identity on the wire: bundles of a certificate, its key and the authority, and lists of revoked ones.

Read by the server, by workers and by the commands that make certificates (`varangian.pki`). It imports
nothing of the package but file descriptors, so that a health check starts quickly.
"""
