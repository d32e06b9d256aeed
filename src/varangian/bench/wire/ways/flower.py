"""Flower: array records cut into Flower's objects, each in a message of its own, and put together again.

Run with Flower 1.42. Only what moves an array is measured, with a dictionary as the store: none of the
processes that Flower puts between a client and the server.
"""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from varangian.bench.wire.ways.base import Floats, Job, Pushing, RowServer
from varangian.bench.wire.ways.unary import OPTIONS, SERVICE, THREADS
from varangian.protos.network.dial import open_channel

METHOD, LAST, WORKER = "Object", "Last", "worker"
OBJECTS = "flwr.supercore.inflatable.inflatable_object"
UTILITIES = "flwr.supercore.inflatable.inflatable_utils"


class Server(RowServer):
    """Stores the objects of each worker until it names the one that holds all others."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._parts: list[dict[str, bytes]] = [{} for _ in range(job.workers)]
        self._utilities = importlib.import_module(UTILITIES)
        self._messages = importlib.import_module("flwr.proto.message_pb2")
        self._server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
        handlers: dict[str, Any] = {
            METHOD: grpc.unary_unary_rpc_method_handler(self._object),
            LAST: grpc.unary_unary_rpc_method_handler(self._last),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _object(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        request = self._messages.PushObjectRequest.FromString(message)
        self._parts[_worker(context)][request.object_id] = request.object_content
        return bytes(self._messages.PushObjectResponse().SerializeToString())

    def _last(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        request = self._messages.PushObjectRequest.FromString(message)
        parts = self._parts[_worker(context)]
        record = self._utilities.inflate_object_from_contents(request.object_id, parts)
        (self._rows[_worker(context)],) = record.to_numpy_ndarrays(keep_input=False)
        parts.clear()
        return b""

    def close(self) -> None:
        self._server.stop(None)


class Workers:
    """A channel and a thread for each."""

    def __init__(self, address: str, job: Job) -> None:
        self._vectors = job.vectors()
        self._kind: Any = importlib.import_module("flwr.common").ArrayRecord
        self._objects, self._utilities = map(importlib.import_module, (OBJECTS, UTILITIES))
        self._request = importlib.import_module("flwr.proto.message_pb2").PushObjectRequest
        own = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        self._channels = [open_channel(address, options=own) for _ in self._vectors]
        self._pool = ThreadPoolExecutor(job.workers)

    def round(self) -> None:
        for _ in self._pool.map(self._send, range(len(self._vectors)), self._vectors):
            pass

    def _send(self, i: int, vector: Floats) -> None:
        calls: dict[str, Any] = {
            name: self._channels[i].unary_unary(f"/{SERVICE}/{name}") for name in (METHOD, LAST)
        }

        def call(name: str, key: str, content: bytes = b"") -> None:
            request = self._request(object_id=key, object_content=content)
            calls[name](request.SerializeToString(), metadata=((WORKER, str(i)),))

        record = self._kind([vector])
        with self._objects.no_object_id_recompute():
            objects = self._objects.get_all_nested_objects(record)
            key = record.object_id
        self._utilities.push_objects(objects, lambda key, content: call(METHOD, key, content))
        call(LAST, key)

    def digests(self) -> None:
        return None

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class Flower(Pushing):
    """An array record from each worker."""

    server, workers = Server, Workers


def _worker(context: grpc.ServicerContext) -> int:
    (found,) = [value for key, value in context.invocation_metadata() if key == WORKER]
    return int(found)
