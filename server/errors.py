"""Every way a call can be refused: one status, one stable code, one sentence."""

from __future__ import annotations

from grpc import StatusCode

from varangian.protos.errors import Code, CodecError
from varangian.protos.text import escape
from varangian.server.identity.sessions import IdentityError, IdentityRefusal
from varangian.server.protocol.events import Refusal

SENTENCE_LIMIT = 1000
"""Characters: a status travels in a header, and headers are small."""

AGE = "AGE"
"""The code of a call that stays open and ends because it did so for long enough."""

CODEC_STATUS = {
    Code.PROTOCOL: StatusCode.FAILED_PRECONDITION,
    Code.RUN: StatusCode.FAILED_PRECONDITION,
    Code.LAYOUT: StatusCode.FAILED_PRECONDITION,
    Code.COMMON: StatusCode.FAILED_PRECONDITION,
    Code.DIGEST: StatusCode.DATA_LOSS,
}
"""Those that are not INVALID_ARGUMENT."""

REFUSAL_STATUS = {
    Refusal.UNKNOWN_WORKER: StatusCode.PERMISSION_DENIED,
    Refusal.FUTURE: StatusCode.OUT_OF_RANGE,
    Refusal.COUNTED: StatusCode.ALREADY_EXISTS,
    Refusal.RESTARTED: StatusCode.ABORTED,
    # The upload it collides with may be a dead one of the same worker: trying again is right.
    Refusal.BUSY: StatusCode.UNAVAILABLE,
}
"""Those that are not FAILED_PRECONDITION."""

STRANGER_STATUS = {
    IdentityRefusal.UNIDENTIFIED: StatusCode.UNAUTHENTICATED,
    IdentityRefusal.BAD_TOKEN: StatusCode.UNAUTHENTICATED,
    IdentityRefusal.UNKNOWN_WORKER: StatusCode.PERMISSION_DENIED,
    IdentityRefusal.NOT_JOINED: StatusCode.FAILED_PRECONDITION,
    IdentityRefusal.SESSION_TAKEN: StatusCode.ALREADY_EXISTS,
    IdentityRefusal.SESSION_LOST: StatusCode.ALREADY_EXISTS,
    IdentityRefusal.UNCERTIFIED: StatusCode.UNAUTHENTICATED,
    IdentityRefusal.MISNAMED: StatusCode.PERMISSION_DENIED,
    IdentityRefusal.ROLE: StatusCode.PERMISSION_DENIED,
    IdentityRefusal.OTHER_CLUSTER: StatusCode.PERMISSION_DENIED,
    IdentityRefusal.REVOKED: StatusCode.PERMISSION_DENIED,
    IdentityRefusal.EXPIRED: StatusCode.UNAUTHENTICATED,
}


class Refused(Exception):
    """A call that ends with this answer."""

    def __init__(self, status: StatusCode, code: str, sentence: str) -> None:
        self.status = status
        self.code = code
        # It may quote what the caller sent: nothing in it should grow in a header or steer a terminal.
        plain = escape(sentence, SENTENCE_LIMIT)
        self.sentence = plain.encode("ascii", "backslashreplace").decode()[:SENTENCE_LIMIT]
        super().__init__(sentence)


def idle(seconds: float) -> Refused:
    sentence = f"A stream should bring or take a message at least every {seconds:g} s. Nothing came."
    return Refused(StatusCode.DEADLINE_EXCEEDED, "IDLE", sentence)


def cut(found: str) -> Refused:
    """The worker may try again, and may send chunks."""
    sentence = f"A data connection should last until the payload is through. {found}"
    return Refused(StatusCode.UNAVAILABLE, "LANE", sentence)


def stopping() -> Refused:
    sentence = (
        "A worker should wait for the next server at this address. This one stops before its run is over."
    )
    return Refused(StatusCode.UNAVAILABLE, "STOPPING", sentence)


def aged() -> Refused:
    sentence = (
        "A call that stays open should be made anew now and then, on a new connection. Make it again."
    )
    return Refused(StatusCode.UNAVAILABLE, "AGE", sentence)


def replaced() -> Refused:
    sentence = "A worker should send one vector at a time. Another push of it has begun after this one."
    return Refused(StatusCode.UNAVAILABLE, "REPLACED", sentence)


def too_many_streams(most: int) -> Refused:
    sentence = f"A worker should have at most {most} streams open. This would be one more."
    return Refused(StatusCode.RESOURCE_EXHAUSTED, "STREAMS", sentence)


def too_many_uploads(most: int) -> Refused:
    sentence = f"A worker should need at most {most} uploads in a round. This would be one more."
    return Refused(StatusCode.RESOURCE_EXHAUSTED, "UPLOADS", sentence)


def too_many_pulls(seconds: float) -> Refused:
    sentence = f"A worker should need the same parameters once. It had them often; wait {seconds:g} s."
    return Refused(StatusCode.RESOURCE_EXHAUSTED, "PULLS", sentence)


def too_many_joins(rate: float) -> Refused:
    sentence = f"A worker should join once, or now and then. It did more than {rate:g} times a second."
    return Refused(StatusCode.RESOURCE_EXHAUSTED, "JOINS", sentence)


def too_many_calls(rate: float) -> Refused:
    sentence = (
        f"A caller should make at most {rate:g} calls a second beside those of its rounds. It made more."
    )
    return Refused(StatusCode.RESOURCE_EXHAUSTED, "CALLS", sentence)


def unsound(reason: str) -> Refused:
    """A vector that arrived whole and proves its sender faulty."""
    sentence = f"A vector should have only finite numbers. It was refused: {reason}."
    return Refused(StatusCode.INVALID_ARGUMENT, "UNSOUND", sentence)


def of_refusal(refusal: Refusal, round: int) -> Refused:
    status = REFUSAL_STATUS.get(refusal, StatusCode.FAILED_PRECONDITION)
    return Refused(status, refusal.name, f"{refusal.value} The server is in round {round}.")


def of_error(error: CodecError | IdentityError) -> Refused:
    if isinstance(error, IdentityError):
        return Refused(STRANGER_STATUS[error.code], error.code.name, str(error))
    status = CODEC_STATUS.get(error.code, StatusCode.INVALID_ARGUMENT)
    return Refused(status, error.code.name, str(error))
