"""Limits: what one caller may cost in connections, streams, rates, bytes and turns.

Quotas are spent here, uploads wait for their turn here; who exceeds a limit is refused with an error of
`varangian.protos`. `varangian.server.transport` imports it, and the account of memory in the
launcher.
"""
