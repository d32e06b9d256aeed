"""Spans of workers over real sockets: the server says with the parameters which span they hang below."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from tests.server.transport.test_service import BIG, LAYOUT, LIMITS, NAMES, world

from varangian.server.observability.tracing import Tracing
from varangian.server.observability.traffic import Traffic
from varangian.worker.loop import work
from varangian.worker.spans import TracedSpans
from varangian.worker.transport.client import Client
from varangian.worker.transport.results import Declined

ROUNDS = 2


async def traced_run(layout, data_port, traces=True, compute=None):
    """Rounds with three workers; the spans of the server, and those of the workers."""
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    here, there = memory.InMemorySpanExporter(), memory.InMemorySpanExporter()
    traffic, tracing, spans = Traffic(), Tracing("run-1", 0, here), TracedSpans(there)
    if traces:
        traffic.on_call, traffic.trace_parent = tracing.note_call, tracing.trace_parent

    async def doubled(round, parameters):
        return parameters + 1

    async def one(this, name):
        async with Client(this.address, name, this.sessions.token(name), layout) as client:
            client.traced = True
            await work(client, (compute or doubled), spans=spans)

    options = {"limits": replace(LIMITS, grace=60.0), "data_port": data_port, "rounds": ROUNDS}
    if compute is not None:
        options |= {"quorum": 1, "shortfall": "skip"}
    async with world(layout, traffic=traffic, observe=tracing.observe, **options) as this:
        await asyncio.gather(*(one(this, name) for name in NAMES))
    await asyncio.to_thread(tracing.close)
    await asyncio.to_thread(spans.close)
    return here.get_finished_spans(), there.get_finished_spans()


def said(span):
    return span.name, span.attributes["varangian.round"], span.attributes["varangian.worker"]


@pytest.mark.parametrize(
    ("layout", "data_port"),
    [
        pytest.param(LAYOUT, 0, id="one message"),
        pytest.param(BIG, 0, id="data channel"),
        pytest.param(BIG, None, id="chunks"),
    ],
)
async def test_a_computation_and_a_push_hang_below_their_round(layout, data_port):
    ours, theirs = await traced_run(layout, data_port)
    tops = {span.attributes["varangian.round"]: span.context for span in ours if span.name == "round"}
    assert tops.keys() == {*range(ROUNDS)}
    for span in theirs:
        top = tops[span.attributes["varangian.round"]]
        assert (span.parent.trace_id, span.parent.span_id) == (top.trace_id, top.span_id)
        assert span.context.trace_id == top.trace_id
        assert span.resource.attributes["service.name"] == "varangian-worker"
    expected = [
        (what, round, name) for what in ("compute", "push") for round in range(ROUNDS) for name in NAMES
    ]
    assert Counter(map(said, theirs)) == Counter(expected)
    assert {span.attributes["varangian.outcome"] for span in theirs if span.name == "push"} == {"counted"}


async def test_without_traces_of_the_server_each_span_is_a_trace_of_its_own():
    ours, theirs = await traced_run(LAYOUT, 0, traces=False)
    assert {span.name for span in ours} <= {"round", "wait", "rule", "gram", "step", "evaluate"}
    assert theirs
    assert {span.parent for span in theirs} == {None}
    assert len({span.context.trace_id for span in theirs}) == len(theirs)


async def test_a_round_that_is_declined_is_seen():
    async def compute(round, parameters):
        raise Declined("no data")

    _, theirs = await traced_run(LAYOUT, 0, compute=compute)
    assert {span.name for span in theirs} == {"compute"}
    assert {span.status.description for span in theirs} == {"Declined"}


@pytest.mark.parametrize("text", ["", "00-1-2-01", "x" * 10_000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_what_names_no_span_is_left_out(text):
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    found = memory.InMemorySpanExporter()
    spans = TracedSpans(found)
    with spans.span("push", text, "w00", 3):
        pass
    spans.close()
    (span,) = found.get_finished_spans()
    assert span.parent is None
