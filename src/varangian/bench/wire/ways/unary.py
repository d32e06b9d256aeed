"""Unary gRPC, as most projects move gradients: one message for each, one thread for each call."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import numpy as np

from varangian.bench.wire.ways.base import Floats, Job, Pushing, RowServer
from varangian.protos import ps_pb2
from varangian.protos.network.dial import open_channel

METHOD = "Push"
SERVICE = "bench.Unary"
THREADS = 10
"""As in the examples of gRPC."""
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

Pack = Callable[[int, Floats], bytes]
Unpack = Callable[[bytes], tuple[int, Floats]]


class Server(RowServer):
    """Copies each vector out of its message."""

    def __init__(self, job: Job, unpack: Unpack) -> None:
        super().__init__(job)
        self._unpack = unpack
        self._server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._push)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None)

    def _push(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        worker, vector = self._unpack(message)
        self._rows[worker] = vector
        return b""


class Workers:
    """A channel and a thread for each."""

    def __init__(self, address: str, job: Job, pack: Pack) -> None:
        self._vectors = job.vectors()
        self._pack = pack
        # Channels with the same options would share one connection.
        own = [(*OPTIONS, ("grpc.use_local_subchannel_pool", 1)) for _ in self._vectors]
        self._channels = [open_channel(address, options=options) for options in own]
        self._calls = [_call(channel) for channel in self._channels]
        self._pool = ThreadPoolExecutor(job.workers)

    def round(self) -> None:
        for _ in self._pool.map(self._send, range(len(self._vectors))):
            pass

    def digests(self) -> None:
        return None

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def _send(self, i: int) -> None:
        self._calls[i](self._pack(i, self._vectors[i]))


def _call(channel: grpc.Channel) -> Callable[[bytes], bytes]:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{METHOD}")
    return call


def _to_protobuf(i: int, vector: Floats) -> bytes:
    return ps_pb2.Chunk(offset=i, data=vector.tobytes()).SerializeToString()


def _from_protobuf(message: bytes) -> tuple[int, Floats]:
    chunk = ps_pb2.Chunk.FromString(message)
    return chunk.offset, np.frombuffer(chunk.data, np.float32)


def _to_pickle(i: int, vector: Floats) -> bytes:
    return pickle.dumps((i, vector))


class Protobuf(Pushing):
    """A `bytes` field in a message that the protobuf library writes and reads."""

    server, workers = partial(Server, unpack=_from_protobuf), partial(Workers, pack=_to_protobuf)


class Pickle(Pushing):
    """A pickled array; whoever may send one can run code in the server."""

    server, workers = partial(Server, unpack=pickle.loads), partial(Workers, pack=_to_pickle)
