"""Names of the call metadata that both ends use."""

WORKER, TOKEN, SESSION = "varangian-worker", "varangian-token", "varangian-session"
"""With every call: the name of the caller, its token, and the id of its session."""
CODE, ROUND = "varangian-code", "varangian-round"
"""With every refusal: its stable code, and the round that the server is in."""
READY = "varangian-ready"
"""In the headers of a push that the server is ready to receive; those of a refused call lack it. Its value
is `CHUNKS`, or the ticket of the payload on a data connection and the key that encrypts it."""
CHUNKS = "1"
TRACE_PARENT = "traceparent"
"""In the headers of the answer to a pull, from a server that traces: the span of the round, in the words of
W3C Trace Context."""
DATA_CHANNEL = "varangian-lane"
"""With a pull or a push of a worker that has a data connection, and would use it."""
