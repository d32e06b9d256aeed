"""Reading the reply of a client of Flower: its model and its metrics, or what is wrong with it.

Nothing that a client writes raises here, and nothing is allocated by what it says about sizes.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from numpy.typing import NDArray

from varangian.federated.arrays import Arrays, Field, Layout
from varangian.protos.text import escape, quote

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Of the headers of arrays that numpy writes, by version."""
NUMPY = "numpy.ndarray"


@dataclass
class Replies:
    """What came back in a round, by client."""

    models: dict[str, Arrays] = field(default_factory=dict[str, Arrays])
    metrics: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Of those that sent one record of them."""
    records: dict[str, str] = field(default_factory=dict[str, str])
    """The name of that record."""
    dropped: dict[str, str] = field(default_factory=dict[str, str])
    absent: dict[str, str] = field(default_factory=dict[str, str])


def read_replies(replies: Iterable[Message], asked: Iterable[int], layout: Layout | None) -> Replies:
    """Sort the replies of a round.

    Args:
        replies: of the grid.
        asked: the nodes that were asked.
        layout: of the model; None where no model is expected.
    """
    found, waiting = Replies(), {str(node) for node in asked}
    for reply in replies:
        client = _client(reply)
        if client not in waiting:  # of nobody who was asked, or a second one
            continue
        waiting.discard(client)
        try:
            _sort(found, client, reply, layout)
        except Exception as error:
            found.models.pop(client, None)
            found.dropped[client] = f"cannot be read ({type(error).__name__})"
    found.absent.update(dict.fromkeys(sorted(waiting), "no reply"))
    return found


def _client(reply: Message) -> str:
    return str(reply.metadata.src_node_id)


def _sort(found: Replies, client: str, reply: Message, layout: Layout | None) -> None:
    if reply.has_error():
        found.absent[client] = f"error {escape(str(reply.error.reason), 80)}"
        return
    content = reply.content
    if layout is not None:
        records = [*content.array_records.values()]
        if len(records) != 1:
            found.dropped[client] = f"should have one record of arrays. Found {len(records)}"
            return
        read = read_model(records[0], layout)
        if isinstance(read, str):
            found.dropped[client] = read
            return
        found.models[client] = read
    named = [*content.metric_records.items()]
    if len(named) == 1:
        ((found.records[client], record),) = named
        found.metrics[client] = dict(record)


def read_model(record: ArrayRecord, layout: Layout) -> dict[str, NDArray[Any]] | str:
    """The arrays of a record, without copies, or what is wrong with them."""
    if wrong := layout.wrong_names(record.keys()):
        return wrong
    arrays: dict[str, NDArray[Any]] = {}
    for one in layout.fields:
        read = _array(record[one.name], one)
        if isinstance(read, str):
            return read
        arrays[one.name] = read
    return arrays


def _array(array: Array, expected: Field) -> NDArray[Any] | str:
    """One array, checked against what is expected before its bytes are looked at."""
    name = quote(expected.name)
    if array.stype != NUMPY:
        return f"{name} should be written as {NUMPY}. Found {quote(str(array.stype), 40)}"
    stream = io.BytesIO(array.data)
    version = np.lib.format.read_magic(stream)
    if version not in _READERS:
        return f"{name} has a header of version {version}, not 1.0 or 2.0"
    shape, by_columns, dtype = _READERS[version](stream)
    if problem := expected.problem(shape, dtype):
        return problem
    begin, size = stream.tell(), expected.size * expected.dtype.itemsize
    if len(array.data) - begin != size:
        return f"{name} should have {size} bytes of numbers. Found {len(array.data) - begin}"
    flat = np.frombuffer(array.data, expected.dtype, offset=begin)
    return flat.reshape(expected.shape, order="F" if by_columns else "C")
