"""Refusals as the server gives them: counted by code, logged, and sent as status and metadata.

The only place that counts refused calls and closed connections; what each code means is in
`varangian.protos.refusals`.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Never

from grpc import StatusCode

from varangian.protos import metadata_keys
from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal
from varangian.protos.text import escape
from varangian.server.transport import calls
from varangian.server.transport.calls import Call
from varangian.structured_logs import event

log = logging.getLogger(__name__)

SENTENCE_LIMIT = 1000
"""Characters: a status travels in a header, and headers are small."""
ROUTINE = frozenset({Refusal.AGE.code, Refusal.SILENT.code, Refusal.CROWD.code})
"""Refusals that honest callers meet as well; not worth a warning."""


class Refusals:
    """The refusals of one server.

    Args:
        counts: how many there were, by code; counted on from there.
    """

    def __init__(self, counts: Counter[str] | None = None) -> None:
        self.counts = Counter[str]() if counts is None else counts
        self._logged = set[tuple[str, str]]()

    def count(self, refusal: Refusal) -> None:
        """One more, of which something was logged already."""
        self.counts[refusal.code] += 1

    def connection(self, who: str, code: str, sentence: str) -> None:
        """A data connection was closed. The code may also be that of an error of the system."""
        self.counts[code] += 1
        log.log(
            self._level(who, code),
            "data port: refused %.70s: %s %r",
            who,
            code,
            sentence,
            extra=event("connection_refused", caller=who, code=code),
        )

    async def answer(self, call: Call, who: str, refused: Refused, round: int) -> Never:
        """End a call with a refusal.

        Args:
            call: of the worker.
            who: its caller, for the log.
            refused: why.
            round: that the server is in.
        """
        code, sentence = refused.refusal.code, header_text(str(refused))
        if refused.refusal is not Refusal.AGE:  # which is how such a call ends, and no refusal
            self.counts[code] += 1
        log.log(
            self._level(who, code),
            "refused %s: %s %s",
            who,
            code,
            sentence,
            extra=event("refused", caller=who, code=code, round=round),
        )
        trailing = ((metadata_keys.CODE, code), (metadata_keys.ROUND, str(round)))
        with calls.cancel_if_gone():
            await call.abort(status_of(refused.refusal), sentence, trailing)

    def _level(self, who: str, code: str) -> int:
        """A warning for the first refusal of each kind of each caller."""
        quiet = code in ROUTINE or (who, code) in self._logged
        self._logged.add((who, code))
        return logging.DEBUG if quiet else logging.WARNING


def status_of(refusal: Refusal) -> StatusCode:
    """The gRPC status of a refusal of a call."""
    return StatusCode.UNKNOWN if refusal.status is None else StatusCode[refusal.status]


def header_text(sentence: str) -> str:
    """A sentence for a header. What it quotes of a caller neither grows in it nor steers a terminal."""
    plain = escape(sentence, SENTENCE_LIMIT)
    return plain.encode("ascii", "backslashreplace").decode()[:SENTENCE_LIMIT]
