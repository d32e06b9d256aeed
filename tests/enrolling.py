"""A port for enrolment, with the real gRPC server and certificates behind it."""

import contextlib
from collections import Counter
from types import SimpleNamespace

from varangian.server.identity.enrolment import Enrolment
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.server.transport.enrolment import EnrolmentPort
from varangian.server.transport.refusals import Refusals


@contextlib.asynccontextmanager
async def enrolling(bundle, folder, *, host="127.0.0.1", port=0):
    """Yields the address, the enrolments of the run in `folder`, and the refusals by code."""
    security = Security(bundle)
    sessions = Sessions(["w00"], None, certificate_reader=security.certificate_reader)
    counts, where = Counter(), []
    enrolment = Enrolment(folder, security, lambda: sessions.names)
    listening = EnrolmentPort(enrolment, security, port, where.append)
    async with listening.listening(host, sessions, Limits(), Refusals(counts), lambda: 3):
        listening.announce()
        yield SimpleNamespace(address=where[0], enrolment=enrolment, refused=counts)
