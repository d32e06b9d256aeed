"""`varangian health`, for the health checks of containers: gRPC and nothing heavier."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import grpc

from varangian.cli.text import printable
from varangian.protos import ps_pb2, ps_pb2_grpc


def command(args: argparse.Namespace) -> int:
    """Ask the server for its status; 0 when it answers."""
    try:
        reply = status(args.server, args.timeout)
    except grpc.RpcError as error:
        print(f"{args.server} does not serve: {reason(error)}", file=sys.stderr)
        return 1
    state = "finished" if reply.finished else f"round {reply.round} of {reply.rounds}"
    print(f"{args.server} serves: {state}, {reply.present} of {reply.workers} workers have joined")
    return 0


def reason(error: grpc.RpcError) -> str:
    """Why a call failed, safe to print: a part of it may come from the other end."""
    return printable(
        f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
    )


def status(server: str, timeout: float) -> ps_pb2.StatusReply:
    """The state of the run behind an address.

    Raises:
        grpc.RpcError: no answer within `timeout` seconds, or none at all.
    """
    with grpc.insecure_channel(server) as channel:
        stub: Any = ps_pb2_grpc.ParameterServerStub(channel)  # type: ignore[no-untyped-call]
        reply: ps_pb2.StatusReply = stub.Status(ps_pb2.StatusRequest(), timeout=timeout)
        return reply
