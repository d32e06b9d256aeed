"""Identity: bundles of a certificate, its key and the authority, and lists of revoked certificates.

The server, workers and the commands that make certificates (`varangian.pki`) read them; `credentials` says
which of them arguments and the environment ask for. It imports nothing heavy, so that a health check starts
quickly.
"""
