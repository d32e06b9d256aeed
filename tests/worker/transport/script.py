"""A server that does what a script says, and a client of it."""

import asyncio
import contextlib
from math import inf

import grpc
import grpc.aio
import torch
from tests.chunks import cut_chunks

from varangian.protos import ps_pb2
from varangian.protos.contract import Contract
from varangian.protos.layout import Layout
from varangian.protos.messages import PROTOCOL
from varangian.protos.payloads.encoding import encode_vector, payload_digest
from varangian.worker.transport.client import Client
from varangian.worker.transport.retry import Backoff

LAYOUT = Layout((("weight", (3, 2)), ("bias", (2,))))
BIG = Layout((("weight", (8, 1024, 1024)),))
VECTOR = torch.arange(8, dtype=torch.float32)
SERVICE = "varangian.v1.ParameterServer"


class Script:
    """A server: each call takes the next step of the list with its name; the last step is repeated."""

    def __init__(self, layout=LAYOUT, dtype=ps_pb2.DTYPE_FLOAT32):
        self.contract, self.dtype, self.round = Contract("run-1", layout), dtype, 4
        self.data_port, self.inline, self.finished, self.buffers = 0, False, "", 0
        self.steps = {"Join": [self.welcome], "Pull": [self.parameters], "Push": [self.counted]}
        self.steps["PullInline"] = [self.parameters_inline]
        self.seen = {name: [] for name in self.steps}
        self.peers, self.metadata = [], []

    async def welcome(self, request, context):
        return ps_pb2.JoinReply(
            protocol=PROTOCOL,
            dtype=self.dtype,
            buffers=self.buffers,
            run_id=self.contract.run_id,
            round=self.round,
            chunk_bytes=1 << 16,
            data_port=self.data_port,
            inline=self.inline,
            finished=self.finished,
        )

    async def parameters(self, request, context):
        await self.send(context, VECTOR)

    async def parameters_inline(self, request, context):
        data = encode_vector(VECTOR).tobytes()
        return ps_pb2.PullReply(manifest=self.contract.manifest(4, payload_digest(data)), payload=data)

    async def counted(self, requests, context):
        await context.send_initial_metadata((("varangian-ready", "1"),))
        parts = [part async for part in requests]
        self.seen["Push"][-1] = parts
        return ps_pb2.PushReply(round=parts[0].manifest.round)

    async def send(self, context, vector, round=4, order=1, **changes):
        data = encode_vector(vector)
        manifest = self.contract.manifest(round, payload_digest(data))
        for field, value in changes.items():
            setattr(manifest, field, value)
        await context.write(ps_pb2.PullReply(manifest=manifest))
        for chunk in list(cut_chunks(data))[::order]:
            await context.write(ps_pb2.PullReply.FromString(chunk))

    def call(self, name):
        async def handle(request, context):
            self.seen[name].append(request)
            self.peers.append(context.peer())
            self.metadata.append(dict(context.invocation_metadata()))
            steps = self.steps[name]
            return await (steps.pop(0) if len(steps) > 1 else steps[0])(request, context)

        return handle

    def handlers(self):
        kinds = {
            "Join": (grpc.unary_unary_rpc_method_handler, ps_pb2.JoinRequest, ps_pb2.JoinReply),
            "Pull": (grpc.unary_stream_rpc_method_handler, ps_pb2.PullRequest, ps_pb2.PullReply),
            "PullInline": (grpc.unary_unary_rpc_method_handler, ps_pb2.PullRequest, ps_pb2.PullReply),
            "Push": (grpc.stream_unary_rpc_method_handler, ps_pb2.PushRequest, ps_pb2.PushReply),
        }
        methods = {
            name: make(self.call(name), request.FromString, reply.SerializeToString)
            for name, (make, request, reply) in kinds.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)


def refuse(status, code=None, sentence="because", round=5):
    """A refusal. Of a push its manifest is read before: grpc.aio loses an answer that crosses with it."""

    async def step(request, context):
        if hasattr(request, "__anext__"):
            await anext(request)
        trailing = (("varangian-code", code), ("varangian-round", str(round))) if code else ()
        await context.abort(status, sentence, trailing)

    return step


def pulls(*parts):
    async def step(request, context):
        for part in parts:
            await context.write(ps_pb2.PullReply(**part))

    return step


async def hang(request, context):
    await asyncio.sleep(3600)


AGAIN = {"again": ps_pb2.Again()}
UNAVAILABLE = refuse(grpc.StatusCode.UNAVAILABLE)


@contextlib.asynccontextmanager
async def playing(script, credentials=None):
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 8 << 20)]
    )
    server.add_generic_rpc_handlers((script.handlers(),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


class Naps(list):
    """Instead of sleeping: so many seconds have passed at once."""

    async def __call__(self, seconds):
        self.append(seconds)

    def now(self):
        return sum(self)


@contextlib.asynccontextmanager
async def client_of(script, tries=4, idle=5.0, proof="token", credentials=None, patience=inf):
    async with playing(script, credentials) as address:
        naps, backoff = Naps(), Backoff(tries, patience=patience)
        again = {"backoff": backoff, "idle": idle, "sleep": naps, "now": naps.now}
        client = Client(address, "w00", proof, script.contract.layout, **again)
        client.naps = naps
        async with client:
            yield client


@contextlib.asynccontextmanager
async def joined(script, **options):
    """A client that has joined."""
    async with client_of(script, **options) as client:
        await client.join()
        yield client
