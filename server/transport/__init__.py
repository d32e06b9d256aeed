"""gRPC at the server: calls in, replies and payloads out.

`service` has the calls, `call_admission` what comes before any message is read, `uploads` and `downloads`
the payloads, `administration` changes of members, `enrolment` the port of new workers, `refusals` how a
refusal is counted and sent. It asks `rounds` what to do and never decides about a round. Only
`varangian.server.app`, the launcher and benchmarks import it.
"""
