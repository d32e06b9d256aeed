"""The authority of a cluster: its keys, certificates and what is revoked.

The only place that needs the package `cryptography` for certificates. The launcher and the commands
`certs`, `token` and `doctor` import it; it imports `varangian.protos.identity`.
"""
