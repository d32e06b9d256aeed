"""A run in one process without sockets: the same server, vectors handed over, virtual time.

`varangian.launch` starts it when `backend` is `simulate`. It gives the same numbers as processes do, bit
for bit. Nothing else may import it.
"""
