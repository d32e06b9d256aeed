"""The account: what it adds up, what is there, and that a server keeps to it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.extent import patience
from tests.launch import within

from varangian.config import load
from varangian.launch.memory_budget import RESERVE, MemoryBudget
from varangian.launch.server_run import simulated_bytes, snapshot_bytes
from varangian.protos.data_channel.encrypted_stream import PAYLOADS
from varangian.protos.data_channel.listener import THREADS
from varangian.protos.data_channel.transfer import BLOCK
from varangian.protos.messages import MESSAGE_LIMIT
from varangian.protos.network.descriptors import connections
from varangian.protos.network.grpc_options import LOOKAHEAD, MANIFEST
from varangian.server.limits.limits import Limits
from varangian.server.rounds.windowed import window_columns
from varangian.server.rows.latest_store import LatestPlan
from varangian.server.training.optimizers import Sgd
from varangian.server.transport.grpc_server import STREAMS

PLAIN = Sgd(lr=0.1)
GB = 10**9


def account(**options) -> MemoryBudget:
    return MemoryBudget.of(15, 11_200_000, **({"optimizer": PLAIN, "base": 300 << 20} | options))


def test_the_sum_by_hand():
    found = account(limits=Limits(streams=2, receiving=4))
    assert found.rows == 15 * 11_200_000 * 4
    assert found.vectors == 7
    beside = (15 * 2 * 2 + 64) * (64 << 10) + 15 * 2 * 2 * PAYLOADS.segment + THREADS * BLOCK
    calls = (4 * 15 + 32) * (64 + 8 * (16 + 16 + 8)) << 10
    assert found.streams == (15 * 2 + 8 + 4 * 3) * MESSAGE_LIMIT + calls + beside
    assert found.base == (300 << 20) + RESERVE
    assert found.total == found.rows + 7 * 44_800_000 + found.streams + found.base
    streams = f"{found.streams / 1e6:.0f} MB"
    parts = f"rows 672 MB + model 7 x 45 MB + streams {streams} + base 449 MB"
    assert found.sentence.startswith(f"memory: {parts} = at most 1.7 GB")


def test_whoever_may_send_chunks_is_counted_with_them():
    """Beside gRPC a payload needs less, but a worker that cannot reach that port need not say so before."""
    only = account(data_channel=False)
    assert only.total < account().total < only.total + (32 << 20)


def test_small_payloads_that_are_sent_ahead_are_counted():
    options = {"optimizer": PLAIN, "base": 300 << 20}
    small, large = (MemoryBudget.of(15, d, **options).streams for d in (16_000, 17_000))
    ahead = 4 * 16_000 + MANIFEST - LOOKAHEAD
    assert small - large == connections(15) * STREAMS * ahead


def test_rows_in_half_the_space_and_windows():
    assert account(rows="bfloat16").rows == account().rows // 2
    assert account(mapped=True).rows == 0
    assert account(mapped=True).total == account().total - account().rows
    assert "or on a disk with server.rows_folder." in str(account().refusal(0))
    assert "smaller model, or another machine." in str(account(mapped=True).refusal(0))
    assert account(columns=1 << 20).rows == 15 * 4 << 20
    assert account(columns=1 << 30).rows == account().rows


def test_latest_vectors_and_the_seats_of_those_who_push(tmp_path: Path):
    plan = LatestPlan(15, 11_200_000, "bfloat16")
    found = account(row_slots=6, latest=plan)
    assert found.rows == 6 * 11_200_000 * 4
    assert found.total == account(row_slots=6).total + 16 * 11_200_000 * 2
    assert " + latest vectors 358 MB + model 7 x " in found.sentence
    assert "a `folder` on disk, or half as large with `store: bfloat16`" in str(found.refusal(0))
    assert account(latest=LatestPlan(15, 11_200_000, folder=tmp_path)).total == account().total
    assert account(row_slots=99).rows == account().rows
    assert account(extra_vectors=3).vectors == account().vectors + 3


def test_momentum_is_one_more():
    assert account(optimizer=Sgd(lr=1, momentum=0.9, nesterov=True, weight_decay=0.1)).vectors == 10
    assert account(average=True).vectors == 9  # two numbers for each parameter


def test_evaluations_and_what_does_not_train_are_counted():
    found = account(evaluation=50_000_000, rest=10_000_000)
    assert found.total == account().total + 50_000_000 + 2 * 10_000_000
    assert " + frozen 20 MB + evaluation 50 MB + streams " in found.sentence


@pytest.mark.parametrize(
    ("settings", "vectors"),
    [
        ([], 2),
        (["server.checkpoint=null"], 0),
        (["backend=simulate"], 0),
        (["backend=simulate", "server.checkpoint.every=5"], 2 + 30),
        (["optimizer=adam", "ema.reference_batch=32"], 2 + 2 + 2),
        (["participation.fedlaavg.participants=8"], 2 + 16),
        (["participation.async.buffer=8"], 2 + 15),
        (["participation.fedlaavg={participants: 8, folder: /tmp}"], 0),
    ],
)
def test_the_copy_for_checkpoints_by_hand(settings, vectors):
    assert snapshot_bytes(load(None, settings), 5000) == vectors * 5000 * 4


def test_without_room_for_a_copy_checkpoints_are_written_without_one():
    found = account(snapshot=90_000_000)
    assert found.total == account().total + 90_000_000
    assert " + checkpoint 90 MB + streams " in found.sentence
    room = found.total - (300 << 20)
    assert found.within(room) == found
    assert found.within(room - 1) == account()
    assert found.within(None) == found


def test_a_machine_with_less_is_refused_with_the_numbers():
    found = account()
    needed = found.total - (300 << 20)
    assert found.refusal(needed) is None
    assert found.refusal(None) is None
    sentence = found.refusal(needed - 1)
    assert sentence is not None
    assert sentence.startswith("the server needs up to 1.7 GB of memory, and this machine or its ")
    assert "server.rows=bfloat16" in sentence


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "way", "checkpoints"),
    [
        ("rows", "lane", False),
        ("rows", "lane", True),
        # The rows are the same, and chunks take less than a lane.
        ("rows", "chunks", False),
        # What a window keeps of its rows is in the sum by hand.
        ("window", "lane", False),
    ],
)
def test_a_server_keeps_to_it(memory: str, way: str, checkpoints: bool, tmp_path: Path):
    """Two rounds over sockets, with the workers in this process."""
    command = [sys.executable, within.__file__, memory, way, *([str(tmp_path)] if checkpoints else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        first = json.loads(server.stdout.readline())
        asyncio.run(asyncio.wait_for(within.workers(first["address"]), patience(120)))
        last = json.loads(server.stdout.readline())
    assert last["reason"] == f"all {within.ROUNDS} rounds are done"
    assert last["peak"] <= first["most"]
    whole = 4 * len(within.NAMES) * within.LAYOUT.numel
    assert first["rows"] == (
        whole if memory == "rows" else 4 * len(within.NAMES) * window_columns(within.LAYOUT.numel)
    )
    # A copy of all rows would have shown.
    assert whole > first["most"] - first["spare"] - last["peak"]


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ([], 0),
        (["backend=simulate"], 2),
        (["backend=simulate", "worker.momentum=0"], 1),
        (["backend=simulate", "worker.inner=adamw"], 3),
        (["backend=simulate", "worker.inner=adamw", "server.fragments=2"], 4),
        (["backend=simulate", "simulate.gradients=batched", "worker.local_steps=3"], 4),
    ],
)
def test_vectors_of_simulated_workers_are_counted(settings: list[str], copies: int):
    assert simulated_bytes(load(None, settings), 5000) == copies * 15 * 5000 * 4
