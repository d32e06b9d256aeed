from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
    DTYPE_INT8: _ClassVar[Dtype]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_BFLOAT16: Dtype
DTYPE_INT8: Dtype

class Manifest(_message.Message):
    __slots__ = ("protocol", "run_id", "round", "sequence", "layout_digest", "dtype", "numel", "content_digest")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUMEL_FIELD_NUMBER: _ClassVar[int]
    CONTENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run_id: str
    round: int
    sequence: int
    layout_digest: bytes
    dtype: Dtype
    numel: int
    content_digest: bytes
    def __init__(self, protocol: _Optional[int] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., sequence: _Optional[int] = ..., layout_digest: _Optional[bytes] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., numel: _Optional[int] = ..., content_digest: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Seal(_message.Message):
    __slots__ = ("content_digest",)
    CONTENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    content_digest: bytes
    def __init__(self, content_digest: _Optional[bytes] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol", "layout", "software", "common")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    COMMON_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    layout: str
    software: str
    common: str
    def __init__(self, protocol: _Optional[int] = ..., layout: _Optional[str] = ..., software: _Optional[str] = ..., common: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("protocol", "run_id", "round", "chunk_bytes", "message_limit", "dtype", "data_port", "inline", "epoch", "resumed_at", "checkpoint_every", "checkpoint_keep", "parent", "momentum", "deadline", "buffers", "fragments", "finished")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESUMED_AT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_KEEP_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run_id: str
    round: int
    chunk_bytes: int
    message_limit: int
    dtype: Dtype
    data_port: int
    inline: bool
    epoch: int
    resumed_at: int
    checkpoint_every: int
    checkpoint_keep: int
    parent: str
    momentum: float
    deadline: float
    buffers: int
    fragments: int
    finished: str
    def __init__(self, protocol: _Optional[int] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., message_limit: _Optional[int] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., data_port: _Optional[int] = ..., inline: bool = ..., epoch: _Optional[int] = ..., resumed_at: _Optional[int] = ..., checkpoint_every: _Optional[int] = ..., checkpoint_keep: _Optional[int] = ..., parent: _Optional[str] = ..., momentum: _Optional[float] = ..., deadline: _Optional[float] = ..., buffers: _Optional[int] = ..., fragments: _Optional[int] = ..., finished: _Optional[str] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("run_id", "after", "chunk_bytes", "have")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: int
    chunk_bytes: int
    have: bytes
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., have: _Optional[bytes] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Again(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PullReply(_message.Message):
    __slots__ = ("manifest", "chunk", "finished", "again", "payload", "since")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    chunk: Chunk
    finished: Finished
    again: Again
    payload: bytes
    since: int
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., again: _Optional[_Union[Again, _Mapping]] = ..., payload: _Optional[bytes] = ..., since: _Optional[int] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("manifest", "chunk", "seal", "payload")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    chunk: Chunk
    seal: Seal
    payload: bytes
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., seal: _Optional[_Union[Seal, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ("round", "duplicate", "weight", "weight_round")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    duplicate: bool
    weight: float
    weight_round: int
    def __init__(self, round: _Optional[int] = ..., duplicate: bool = ..., weight: _Optional[float] = ..., weight_round: _Optional[int] = ...) -> None: ...

class DeclineRequest(_message.Message):
    __slots__ = ("run_id", "round", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class DeclineReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AttendRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class AttendReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("protocol", "run_id", "software", "round", "rounds", "finished", "sentence", "workers", "present", "refusals", "data_port", "classes", "revoked", "warnings", "now")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run_id: str
    software: str
    round: int
    rounds: int
    finished: bool
    sentence: str
    workers: int
    present: int
    refusals: str
    data_port: int
    classes: int
    revoked: int
    warnings: str
    now: int
    def __init__(self, protocol: _Optional[int] = ..., run_id: _Optional[str] = ..., software: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., finished: bool = ..., sentence: _Optional[str] = ..., workers: _Optional[int] = ..., present: _Optional[int] = ..., refusals: _Optional[str] = ..., data_port: _Optional[int] = ..., classes: _Optional[int] = ..., revoked: _Optional[int] = ..., warnings: _Optional[str] = ..., now: _Optional[int] = ...) -> None: ...

class MembersRequest(_message.Message):
    __slots__ = ("action", "name", "f", "certificate")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    F_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    action: str
    name: str
    f: int
    certificate: bytes
    def __init__(self, action: _Optional[str] = ..., name: _Optional[str] = ..., f: _Optional[int] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class MembersReply(_message.Message):
    __slots__ = ("table", "sentence", "round", "request", "token")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    table: str
    sentence: str
    round: int
    request: bytes
    token: str
    def __init__(self, table: _Optional[str] = ..., sentence: _Optional[str] = ..., round: _Optional[int] = ..., request: _Optional[bytes] = ..., token: _Optional[str] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("token", "name", "request")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    token: str
    name: str
    request: bytes
    def __init__(self, token: _Optional[str] = ..., name: _Optional[str] = ..., request: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate", "authority", "waiting")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    authority: bytes
    waiting: str
    def __init__(self, certificate: _Optional[bytes] = ..., authority: _Optional[bytes] = ..., waiting: _Optional[str] = ...) -> None: ...
