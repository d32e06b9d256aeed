"""The error for messages and payloads that cannot be used."""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """Why a message was refused. The names are part of the wire format, the values are what should be."""

    MALFORMED = "A message should be of the type that this call takes."
    PROTOCOL = "Both ends should speak the same protocol version."
    RUN = "A message should belong to the run that the server holds."
    LAYOUT = "The model of a worker should have the parameters of the server's model."
    COMMON = "Machines of a run should agree."
    SEQUENCE = "A worker should send one vector in a round, with sequence 0."
    DTYPE = "The numbers of a vector should be written as both ends agreed."
    NUMEL = "A vector should have one number for each number in the model."
    ORDER = "A chunk should start where the one before it ended."
    CHUNK_SIZE = "A chunk should not be empty."
    TOO_MANY_BYTES = "A vector should not have more bytes than its manifest says."
    TOO_FEW_BYTES = "A stream should carry every byte that its manifest promises."
    DIGEST_SIZE = "A manifest or a seal should carry a digest of 16 bytes."
    DIGEST = "The bytes of a vector should have the digest that its manifest says."


class CodecError(ValueError):
    """What the other end sent cannot be used. Its text says what should be and what was found."""

    def __init__(self, code: Code, found: str) -> None:
        self.code = code
        super().__init__(f"{code.value} {found}")
