"""The authority of a cluster: its keys, certificates and what is revoked; and signatures with them.

The only place that needs the package `cryptography` for certificates. The launcher and the commands
`certs`, `token`, `doctor` and `audit` import it; it imports `varangian.protos.identity`.
"""
