"""Limits: what one caller may cost in connections, streams, rates, bytes and turns.

`limits` has the values, `connections` closes surplus connections, `quotas` has rates and quotas,
`concurrency` what may be open at once, `upload_scheduler` the turns of uploads. The transport of the server
imports it, and the memory budget of the launcher; it imports nothing of the server.
"""
