"""Identity: certificates and tokens of callers, one process for each name, and who is present.

`tls` is the server's side of mutual TLS, `sessions` knows which process has which name, `presence` tells
the run who comes and goes, `revocation` ends the calls of revoked and expired certificates, `enrolment`
has the invitations of new workers.
`varangian.server.transport`, `app` and the launcher import it; it imports nothing of the server.
"""
