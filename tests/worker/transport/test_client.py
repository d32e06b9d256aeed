"""The client against a server that does what a script says."""

import asyncio
import itertools
import re
from math import inf

import grpc
import grpc.aio
import pytest
import torch
from tests.chunks import cut_chunks
from tests.extent import patience
from tests.worker.transport.script import (
    AGAIN,
    BIG,
    LAYOUT,
    UNAVAILABLE,
    VECTOR,
    Naps,
    Script,
    client_of,
    hang,
    joined,
    playing,
    pulls,
    refuse,
)

from varangian.protos import ps_pb2
from varangian.protos.contract import Contract, Terms
from varangian.protos.layout import Layout
from varangian.protos.messages import CHUNK_FLOOR, PROTOCOL
from varangian.protos.payloads.encoding import encode_vector, payload_digest
from varangian.worker.loop import work
from varangian.worker.transport.channel import describe_server
from varangian.worker.transport.client import Client, ClientError, Finished, Receipt
from varangian.worker.transport.retry import Backoff


async def test_join_says_what_the_worker_has_and_who_it_is():
    script = Script()
    async with client_of(script) as client:
        assert await client.join() == 4
    (request,), (metadata,) = script.seen["Join"], script.metadata
    assert (request.protocol, request.layout) == (PROTOCOL, LAYOUT.text)
    assert request.software.startswith("varangian ")
    assert (metadata["varangian-worker"], metadata["varangian-token"]) == ("w00", "token")
    assert len(bytes.fromhex(metadata["varangian-session"])) == 16


async def test_every_call_is_of_one_session():
    script = Script()
    async with joined(script) as client:
        await client.pull(-1)
        await client.push(4, VECTOR)
    assert len({metadata["varangian-session"] for metadata in script.metadata}) == 1
    assert script.seen["Pull"][0].run_id == "run-1"


async def test_a_worker_that_hears_of_the_end_when_it_joins_makes_no_other_call():
    script = Script()
    async with joined(script) as client:
        script.finished = "all done"
        await client.join()
        assert await client.pull(4) == Finished("all done")
        assert (await client.push(4, VECTOR)).code == "FINISHED"
        await client.decline(4, "no samples")
    assert {name: len(calls) for name, calls in script.seen.items() if calls} == {"Join": 2}


async def test_small_payloads_travel_in_one_message_each():
    script = Script()
    script.inline = True
    async with joined(script) as client:
        pulled = await client.pull(-1)
        assert torch.equal(pulled.parameters, VECTOR)
        assert (await client.push(4, VECTOR)).counted
    ((part,),), data = script.seen["Push"], encode_vector(VECTOR).tobytes()
    assert (part.payload, part.manifest.content_digest) == (data, payload_digest(data))
    assert script.seen["Pull"] == []


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ({"finished": ps_pb2.Finished(reason="done")}, Finished("done")),
        ({"manifest": Contract("run-2", LAYOUT).manifest(4, bytes(16))}, "Found run 'run-2'"),
        (
            {"manifest": Contract("run-1", LAYOUT).manifest(4, bytes(16)), "payload": bytes(36)},
            "the 32 that",
        ),
        ({"payload": bytes(70_000)}, "at most 65568 are read"),
    ],
)
async def test_a_model_in_one_message_is_checked_like_any_other(reply, outcome):
    async def step(request, context):
        return ps_pb2.PullReply(**reply)

    script = Script()
    script.inline = True
    script.steps["PullInline"] = [pull_again, step]
    async with joined(script) as client:
        if isinstance(outcome, Finished):
            assert await client.pull(-1) == outcome
        else:
            with pytest.raises(ClientError, match=outcome):
                await client.pull(-1)


async def pull_again(request, context):
    return ps_pb2.PullReply(**AGAIN)


async def test_a_damaged_model_in_one_message_is_pulled_again():
    async def damaged(request, context):
        inline = await script.parameters_inline(request, context)
        return ps_pb2.PullReply(manifest=inline.manifest, payload=bytes(32))

    script = Script()
    script.inline, script.steps["PullInline"] = True, [damaged, script.parameters_inline]
    async with joined(script) as client:
        assert torch.equal((await client.pull(-1)).parameters, VECTOR)


async def test_a_line_that_is_too_slow_for_one_message_gets_small_pieces():
    script = Script()
    script.inline, script.steps["Push"] = (
        True,
        [refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE"), script.counted],
    )
    async with joined(script) as client:
        assert (await client.push(4, VECTOR)).counted
        assert torch.equal((await client.pull(-1)).parameters, VECTOR)
    manifest, *chunks = script.seen["Push"][-1]
    assert (manifest.payload, chunks[0].chunk.data) == (b"", encode_vector(VECTOR).tobytes())
    assert script.seen["PullInline"] == []


async def test_a_server_that_comes_back_without_single_messages_is_asked_for_a_stream():
    script = Script()
    script.inline = True
    script.steps["PullInline"] = [refuse(grpc.StatusCode.UNIMPLEMENTED)]
    async with joined(script) as client:
        assert torch.equal((await client.pull(-1)).parameters, VECTOR)


async def test_a_claim_does_not_wait_for_a_name_that_is_taken():
    script = Script()
    taken = refuse(grpc.StatusCode.ALREADY_EXISTS, "SESSION_TAKEN")
    script.steps["Join"][:0] = [taken, UNAVAILABLE]
    async with client_of(script) as client:
        assert not await client.claim()
        assert client.naps == []
        assert await client.claim()
        assert len(client.naps) == 1


EVIL = "\x1b[2J\x1b]0;owned\x07\r\n12:00:00 INFO all is well\u202e\u2066" + "x" * 1500


def of_server(step):
    """A step of a script whose server wants to steer the terminal of a worker."""
    return {
        "Join": lambda: ("Join", refuse(grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_WORKER", EVIL)),
        "join without a code": lambda: ("Join", refuse(grpc.StatusCode.UNIMPLEMENTED, None, EVIL)),
        "a round without end": lambda: ("Join", refuse(INTERNAL, "X" * 999, EVIL, round="9" * 5000)),
        "silence": lambda: ("Pull", refuse(grpc.StatusCode.UNAVAILABLE, None, EVIL)),
        "Pull": lambda: ("Pull", refuse(grpc.StatusCode.FAILED_PRECONDITION, "LAYOUT", EVIL)),
        "the run": lambda: ("Pull", run_of(EVIL)),
        "Push": lambda: ("Push", refuse(grpc.StatusCode.FAILED_PRECONDITION, "STALE", EVIL)),
        "Finished": lambda: ("Pull", pulls({"finished": ps_pb2.Finished(reason=EVIL)})),
    }[step]()


INTERNAL = grpc.StatusCode.INTERNAL


def run_of(run_id):
    manifest = Contract(run_id, LAYOUT).manifest(4, bytes(16))
    return pulls({"manifest": manifest})


@pytest.mark.parametrize(
    "step",
    [
        "Join",
        "join without a code",
        "a round without end",
        "silence",
        "Pull",
        "the run",
        "Push",
        "Finished",
    ],
)
async def test_what_a_server_says_steers_no_terminal_and_is_cut(step, caplog):
    """All that a worker logs, raises or returns is printable, on one line, and not long."""
    caplog.set_level("DEBUG", "varangian")
    said = []

    async def vector(round, parameters):
        return VECTOR

    script = Script()
    name, answer = of_server(step)
    script.steps[name] = [answer]
    if name == "Push":
        script.steps["Pull"] = [script.parameters, pulls({"finished": ps_pb2.Finished(reason="done")})]
    async with client_of(script, tries=4) as client:
        try:
            said.append(await work(client, vector))
        except ClientError as error:
            said.append(str(error))
    said += [record.getMessage() for record in caplog.records if record.name.startswith("varangian")]
    assert any("all is well" in line for line in said)
    for line in said:
        assert line.isprintable()
        assert len(line) < 2000


@pytest.mark.parametrize("round", [2**63, 2**64 - 1])
@pytest.mark.parametrize("name", ["Join", "Pull"])
async def test_a_round_that_no_run_has_is_one_sentence(name, round):
    script = Script()
    script.round = round if name == "Join" else 4
    script.steps["Pull"] = [lambda request, context: script.send(context, VECTOR, round=round)]
    async with client_of(script) as client:
        if name == "Pull":
            await client.join()
        with pytest.raises(ClientError, match=f"Found round {round}, which no run has"):
            await (client.join() if name == "Join" else client.pull(-1))


async def test_each_client_has_a_connection_of_its_own():
    script = Script()
    async with (
        playing(script) as address,
        Client(address, "w00", "a", LAYOUT) as first,
        Client(address, "w01", "b", LAYOUT) as second,
    ):
        await first.join()
        await second.join()
        await first.join()
    assert len(set(script.peers)) == 2
    assert script.peers[0] == script.peers[2]


async def test_pull_gives_the_parameters_in_memory_of_its_own():
    script = Script()
    async with client_of(script) as client, client_of(script) as other:
        await client.join()
        await other.join()
        first, theirs, second = await client.pull(-1), await other.pull(-1), await client.pull(-1)
    assert first.round == 4
    assert torch.equal(first.parameters, VECTOR)
    assert first.parameters.data_ptr() == second.parameters.data_ptr() != theirs.parameters.data_ptr()
    assert script.seen["Pull"][0].after == -1


async def test_pull_asks_again_when_told_to():
    script = Script()
    manifest = script.contract.manifest(4, payload_digest(b""))
    script.steps["Pull"][:0] = [pulls(AGAIN), pulls({"manifest": manifest}, AGAIN), pulls()]
    async with joined(script) as client:
        assert torch.equal((await client.pull(3)).parameters, VECTOR)
        assert [request.after for request in script.seen["Pull"]] == [3, 3, 3, 3]
        assert client.naps == []


async def test_pull_hears_of_the_end():
    script = Script()
    script.steps["Pull"] = [pulls({"finished": ps_pb2.Finished(reason="all done")})]
    async with joined(script) as client:
        assert await client.pull(9) == Finished("all done")


async def test_a_damaged_download_is_tried_again():
    script = Script()

    async def damaged(request, context):
        await script.send(context, VECTOR, content_digest=bytes(16))

    async def cut(request, context):
        await context.write(ps_pb2.PullReply(manifest=script.contract.manifest(4, bytes(16))))

    script.steps["Pull"][:0] = [damaged, cut]
    async with joined(script) as client:
        assert torch.equal((await client.pull(-1)).parameters, VECTOR)
        assert len(client.naps) == 2


def changes(script, **told):
    """A pull that is answered with the bias alone, of a run in which that is fragment 1."""

    async def step(request, context):
        whole = encode_vector(VECTOR)
        contract = script.contract.of_changes(5, 6)
        manifest = contract.manifest(6, payload_digest(whole))
        known = {"since": 5} | {key: told[key] for key in ("since", "payload") if key in told}
        for field in ("round", "numel", "content_digest"):
            setattr(manifest, field, told.get(field, getattr(manifest, field)))
        payload = known.pop("payload", whole[24:])
        await context.write(ps_pb2.PullReply(manifest=manifest, since=known["since"]))
        for chunk in cut_chunks(payload):
            await context.write(ps_pb2.PullReply.FromString(chunk))

    return step


def split_script(*steps, fragments=2):
    script = Script()
    script.contract = Contract("run-1", LAYOUT, terms=Terms(fragments=2))

    async def welcome(request, context):
        reply = await script.welcome(request, context)
        reply.fragments = fragments
        return reply

    async def before(request, context):
        await script.send(context, torch.cat([VECTOR[:6], -VECTOR[6:]]), round=5)

    script.steps["Join"], script.steps["Pull"] = [welcome], [before, *steps, script.parameters]
    return script


async def test_changes_are_put_into_the_parameters_that_are_there():
    script = split_script()
    script.steps["Pull"][1:] = [changes(script)]
    async with joined(script) as client:
        first = (await client.pull(-1)).parameters.clone()
        assert not torch.equal(first, VECTOR)
        pulled = await client.pull(5)
        assert (pulled.round, torch.equal(pulled.parameters, VECTOR)) == (6, True)
        assert [request.have for request in script.seen["Pull"]] == [
            b"",
            payload_digest(encode_vector(first)),
        ]


@pytest.mark.parametrize(
    "told",
    [
        {"content_digest": bytes(16)},
        {"payload": bytes(8)},
        {"payload": encode_vector(VECTOR)[28:]},
    ],
    ids=["digest", "bytes", "cut"],
)
async def test_who_ends_with_other_parameters_than_the_server_pulls_all_of_them(told):
    script = split_script()
    script.steps["Pull"][1:] = [changes(script, **told), script.parameters]
    async with joined(script) as client:
        await client.pull(-1)
        assert torch.equal((await client.pull(5)).parameters, VECTOR)
        assert [bool(request.have) for request in script.seen["Pull"]] == [False, True, False]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"since": 6}, "changes from round 6 to 6 in a run with 2"),
        ({"since": 2**64 - 1}, "in a run with 2 fragments"),
        ({"since": 4}, "changes from round 4 to 6"),
        ({"numel": 8}, "Found 8 numbers where fragment 1 has 2"),
        ({"numel": 2**63}, "where fragment 1 has 2"),
        ({"payload": bytes(36)}, "the 8 that were promised"),
        ({"round": 2**64 - 1, "since": 2**64 - 2}, "Found 2 numbers where fragment 0 has 6"),
    ],
)
async def test_changes_are_checked_before_they_are_taken(told, words):
    script = split_script()
    script.steps["Pull"][1:] = [changes(script, **told)]
    async with joined(script) as client:
        await client.pull(-1)
        with pytest.raises(ClientError, match=words):
            await client.pull(5)


async def test_changes_that_nobody_has_asked_for_are_refused():
    script = split_script()
    script.steps["Pull"] = [changes(script)]
    async with joined(script) as client:
        with pytest.raises(ClientError, match="Found changes since round 5, of nothing"):
            await client.pull(-1)


async def test_without_fragments_nobody_says_what_it_has():
    script = split_script(fragments=0)
    async with joined(script) as client:
        await client.pull(-1)
        await client.pull(5)
        assert [request.have for request in script.seen["Pull"]] == [b"", b""]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"numel": 9}, "Found 9 numbers"),
        ({"layout_digest": bytes(16)}, "Found layout 0000"),
        ({"protocol": 1}, "the other end 1"),
        ({"run_id": "run-2"}, "Found run 'run-2'"),
    ],
)
async def test_a_download_of_something_else_is_final(changes, words):
    script = Script()

    async def other(request, context):
        await script.send(context, VECTOR, **changes)

    script.steps["Pull"] = [other]
    async with joined(script) as client:
        with pytest.raises(ClientError, match=words):
            await client.pull(-1)
        assert len(script.seen["Pull"]) == 1


async def test_a_download_out_of_order_is_final():
    script = Script(BIG)

    async def backwards(request, context):
        await script.send(context, torch.zeros(BIG.numel), order=-1)

    script.steps["Pull"] = [backwards]
    async with joined(script) as client:
        with pytest.raises(ClientError, match="should start where the one before it ended"):
            await client.pull(-1)


async def test_push_sends_the_manifest_and_then_the_chunks_the_server_asked_for():
    script = Script(Layout((("weight", (3, 40000)),)))
    vector = torch.randn(120000)
    async with joined(script) as client:
        for _ in range(2):
            assert await client.push(4, vector) == Receipt(True, round=4)
    first, *rest, seal = script.seen["Push"][0]
    data = encode_vector(vector).tobytes()
    assert first.manifest == script.contract.manifest(4, b"")
    assert b"".join(part.chunk.data for part in rest) == data
    assert seal.seal.content_digest == payload_digest(data)
    # The second push knows the line, and is as large as it may be at once.
    first, *rest, seal = script.seen["Push"][1]
    assert [part.chunk.offset for part in rest] == list(range(0, len(data), 1 << 16))


async def test_push_writes_numbers_as_the_server_wants_them():
    script = Script(dtype=ps_pb2.DTYPE_BFLOAT16)
    async with joined(script) as client:
        await client.push(4, VECTOR / 3)
        assert torch.equal((await client.pull(-1)).parameters, VECTOR)
    first, chunk, seal = script.seen["Push"][0]
    assert seal.seal.content_digest == payload_digest(chunk.chunk.data)
    assert first.manifest.dtype == ps_pb2.DTYPE_BFLOAT16
    sent = torch.frombuffer(bytearray(chunk.chunk.data), dtype=torch.bfloat16)
    assert torch.equal(sent, (VECTOR / 3).bfloat16())


async def test_a_server_that_wants_numbers_in_an_unknown_way_is_final():
    async with client_of(Script(dtype=9)) as client:
        with pytest.raises(ClientError, match="type number 9; is it newer"):
            await client.join()


async def test_a_duplicate_is_counted():
    script = Script()

    async def before(requests, context):
        await anext(requests)
        return ps_pb2.PushReply(round=4, duplicate=True)

    script.steps["Push"] = [before]
    async with joined(script) as client:
        assert (await client.push(4, VECTOR)).counted


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "STALE"),
        (grpc.StatusCode.OUT_OF_RANGE, "FUTURE"),
        (grpc.StatusCode.INVALID_ARGUMENT, "UNSOUND"),
        (grpc.StatusCode.ALREADY_EXISTS, "COUNTED"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FAULTY"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FINISHED"),
        (grpc.StatusCode.INVALID_ARGUMENT, "NUMEL"),
    ],
)
async def test_a_vector_that_is_not_counted_is_an_answer(status, code):
    script = Script()
    script.steps["Push"] = [refuse(status, code)]
    async with joined(script) as client:
        assert await client.push(4, VECTOR) == Receipt(False, code, "because", 5)
        assert len(script.seen["Push"]) == 1


async def test_no_payload_is_sent_before_the_server_is_ready_for_it():
    script, waiting = Script(), asyncio.Event()

    async def later(requests, context):
        manifest = await anext(requests)
        early = asyncio.ensure_future(anext(requests))
        waiting.set()
        done, _ = await asyncio.wait({early}, timeout=0.05)
        assert not done
        await context.send_initial_metadata((("varangian-ready", "1"),))
        assert (await early).chunk.data == encode_vector(VECTOR)
        return ps_pb2.PushReply(round=manifest.manifest.round)

    script.steps["Push"] = [later]
    async with joined(script) as client:
        assert (await client.push(4, VECTOR)).counted
    assert waiting.is_set()


async def test_a_refusal_in_the_middle_of_a_large_push_is_heard():
    script = Script(BIG)
    stale = refuse(grpc.StatusCode.FAILED_PRECONDITION, "STALE")

    def after(messages):
        async def step(requests, context):
            await anext(requests)
            await context.send_initial_metadata((("varangian-ready", "1"),))
            for _ in range(messages):
                await anext(requests)
            await stale(None, context)

        return step

    async with joined(script) as client:
        for messages in (0, 0, 1, 1, 2, 3, 5, 8):
            # gRPC may lose an answer that crosses with a chunk; the next try hears it at the manifest.
            script.steps["Push"] = [after(messages), stale]
            assert (await client.push(4, torch.zeros(BIG.numel))).code == "STALE"


async def test_a_refusal_of_the_manifest_is_always_heard_at_once():
    script = Script(BIG)
    script.steps["Push"] = [refuse(grpc.StatusCode.FAILED_PRECONDITION, "STALE")]
    async with joined(script) as client:
        for _ in range(8):
            assert (await client.push(4, torch.zeros(BIG.numel))).code == "STALE"
        assert client.naps == []


async def test_passing_failures_are_tried_again_with_growing_waits():
    script = Script()
    script.steps["Join"][:0] = [UNAVAILABLE, UNAVAILABLE, UNAVAILABLE]
    async with client_of(script) as client:
        assert await client.join() == 4
        assert len(client.naps) == 3
        for nap, longest in zip(client.naps, (0.1, 0.2, 0.4), strict=True):
            assert longest / 2 <= nap <= longest


async def test_the_third_failure_in_a_row_is_logged(caplog):
    caplog.set_level("WARNING", "varangian.worker.transport.client")
    script = Script()
    script.steps["Join"][:0] = [UNAVAILABLE] * 5
    async with client_of(script, tries=6) as client:
        await client.join()
    (message,) = caplog.messages
    assert message.startswith("Worker w00 could not join at 127.0.0.1:")
    assert "trying again. UNAVAILABLE: because." in message
    assert re.search(r" yet, since [0-9]{2}:[0-9]{2}:[0-9]{2}; ", message)
    assert "It was called in clear text at 127.0.0.1, port " in message


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE"),
        (grpc.StatusCode.DATA_LOSS, "DIGEST"),
        (grpc.StatusCode.UNAVAILABLE, "BUSY"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAMS"),
        (grpc.StatusCode.ALREADY_EXISTS, "SESSION_TAKEN"),
    ],
)
async def test_what_may_pass_is_tried_again(status, code):
    script = Script()
    script.steps["Push"][:0] = [refuse(status, code)]
    async with joined(script) as client:
        assert (await client.push(4, VECTOR)).counted
        assert len(client.naps) == 1


@pytest.mark.parametrize("status", ["CANCELLED", "UNKNOWN", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"])
async def test_what_no_server_of_ours_has_said_may_pass(status):
    script = Script()
    for name in ("Join", "Pull", "Push"):
        script.steps[name].insert(0, refuse(grpc.StatusCode[status]))
    async with joined(script) as client:
        await client.pull(-1)
        assert (await client.push(4, VECTOR)).counted
        assert len(client.naps) == 3


async def test_a_call_that_ends_with_its_channel_is_tried_again():
    script = Script()
    script.steps["Pull"].insert(0, hang)
    async with joined(script) as client:
        pulling = asyncio.create_task(client.pull(-1))
        while not script.seen["Pull"]:
            await asyncio.sleep(0.01)
        before = client._connection._channel
        client._connection._open()
        await before.close()
        assert torch.equal((await pulling).parameters, VECTOR)


async def test_a_server_that_is_gone_is_waited_for_and_the_log_says_so_once_a_minute(caplog):
    caplog.set_level("WARNING", "varangian.worker.transport.client")
    script = Script()
    script.steps["Join"][:0] = [UNAVAILABLE] * 100
    async with joined(script, tries=inf) as client:
        assert sum(client.naps) > 240
    assert 4 <= len(caplog.messages) <= 9
    assert all("could not join" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("refused", "patience", "waited"),
    [
        (UNAVAILABLE, 1000.0, 1000.0),
        (refuse(grpc.StatusCode.ALREADY_EXISTS, "SESSION_TAKEN"), inf, 60.0),
        (refuse(grpc.StatusCode.ALREADY_EXISTS, "SESSION_TAKEN"), 20.0, 20.0),
    ],
)
async def test_patience_has_an_end(refused, patience, waited):
    script = Script()
    script.steps["Join"] = [refused]
    async with client_of(script, tries=inf, patience=patience) as client:
        with pytest.raises(ClientError, match=r"could not join at .* after \d+ tries in \d+ s\. "):
            await client.join()
        assert waited <= sum(client.naps) <= waited + 5


async def test_a_name_that_becomes_free_is_had_within_a_second():
    script = Script()
    script.steps["Join"][:0] = [refuse(grpc.StatusCode.ALREADY_EXISTS, "SESSION_TAKEN")] * 20
    async with joined(script, tries=inf) as client:
        assert len(client.naps) == 20
        assert max(client.naps) <= 1.0


@pytest.mark.parametrize(
    "code", ["PROTOCOL", "LAYOUT", "RUN", "BAD_TOKEN", "UNKNOWN_WORKER", "SESSION_LOST"]
)
async def test_what_cannot_pass_is_not_tried_again(code):
    script = Script()
    script.steps["Join"] = [refuse(grpc.StatusCode.FAILED_PRECONDITION, code, "the server's sentence.")]
    async with client_of(script) as client:
        with pytest.raises(
            ClientError, match=rf"could not join at 127.* the server's sentence\. \[{code}\]$"
        ):
            await client.join()
        assert len(script.seen["Join"]) == 1


async def test_an_unreachable_server_is_named_with_what_was_tried():
    client = Client("127.0.0.1:9", "w00", "token", LAYOUT, backoff=Backoff(3), sleep=Naps())
    async with client:
        with pytest.raises(ClientError) as caught:
            await client.join()
    sentence = str(caught.value)
    assert sentence.startswith(
        "Worker w00 could not join at 127.0.0.1:9 after 3 tries in 0 s. UNAVAILABLE: "
    )
    assert sentence.endswith(
        " Nothing listens at 127.0.0.1:9. Is the server running, and is this its port? "
        "It was called in clear text at 127.0.0.1, port 9."
    )


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("localhost:7", "over TLS at "),
        ("[::1]:7", "over TLS at ::1, port 7."),
        ("no-such-host.invalid:7", "The name 'no-such-host.invalid' stands for no address here"),
        ("nowhere", "nowhere is no HOST:PORT."),
    ],
)
def test_an_address_is_what_it_stands_for(server, said):
    assert said in describe_server(server, secure=True)


STALE_SESSION = refuse(grpc.StatusCode.FAILED_PRECONDITION, "NOT_JOINED")
OTHER_RUN = refuse(grpc.StatusCode.FAILED_PRECONDITION, "RUN")


async def test_a_worker_joins_again_when_its_server_was_restarted():
    script = Script()
    script.steps["Pull"].insert(0, STALE_SESSION)
    script.steps["Push"].insert(0, STALE_SESSION)
    async with joined(script) as client:
        assert torch.equal((await client.pull(3)).parameters, VECTOR)
        assert (await client.push(4, VECTOR)).counted
    assert len(script.seen["Join"]) == 3
    assert [request.after for request in script.seen["Pull"]] == [3, 3]


async def test_rounds_that_a_server_has_lost_are_pulled_again():
    script = Script()
    async with joined(script) as client:
        await client.pull(3)
        script.round = 2
        script.steps["Pull"] = [STALE_SESSION, script.parameters]
        await client.pull(4)
        await client.pull(4)
    assert [request.after for request in script.seen["Pull"]] == [3, 4, 1, 4]


async def test_a_sign_of_life_while_others_go_on_changes_nothing():
    script = Script()
    async with joined(script) as client:
        await client.pull(3)
        for script.round in (4, 5):
            await client.join()
        await client.pull(4)
    assert [request.after for request in script.seen["Pull"]] == [3, 4]


async def test_another_run_begins_anew_and_takes_no_vector_of_the_old_one():
    script = Script()
    async with joined(script) as client:
        await client.pull(3)
        script.contract, script.round = Contract("run-2", LAYOUT), 0
        script.steps["Push"] = [OTHER_RUN, script.counted]
        receipt = await client.push(4, VECTOR)
        assert (receipt.counted, receipt.code) == (False, "RUN")
        assert len(script.seen["Push"]) == 1
        await client.pull(4)
        assert script.seen["Pull"][-1].run_id == "run-2"
        assert script.seen["Pull"][-1].after == -1
        assert (await client.push(4, VECTOR)).counted


async def test_another_run_of_another_model_is_final():
    script = Script()
    async with joined(script) as client:
        script.steps["Pull"] = [OTHER_RUN]
        script.steps["Join"] = [refuse(grpc.StatusCode.FAILED_PRECONDITION, "LAYOUT", "another model.")]
        with pytest.raises(ClientError, match=r"could not join at .* another model"):
            await client.pull(-1)


async def test_a_vector_that_counts_already_is_pushed_with_its_digest_first():
    script = Script()

    async def known(requests, context):
        first = await anext(requests)
        script.seen["Push"][-1] = [first]
        return ps_pb2.PushReply(round=4, duplicate=True)

    script.steps["Push"] = [refuse(grpc.StatusCode.FAILED_PRECONDITION, "REPEATED"), known]
    async with joined(script) as client:
        assert (await client.push(4, VECTOR)).counted
        assert client.naps == []
    (first,) = script.seen["Push"][-1]
    assert first.manifest.content_digest == payload_digest(encode_vector(VECTOR))


async def test_a_second_try_gives_the_digest_first():
    script = Script()
    script.steps["Push"].insert(0, UNAVAILABLE)
    async with joined(script) as client:
        assert (await client.push(4, VECTOR)).counted
    manifest, *chunks = script.seen["Push"][-1]
    assert manifest.manifest.content_digest == payload_digest(encode_vector(VECTOR))
    assert [part.WhichOneof("part") for part in chunks] == ["chunk"]


async def test_at_first_and_after_a_silence_the_parameters_come_in_small_pieces_until_they_are_fast():
    script = Script(BIG)
    idle = refuse(grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE")

    async def whole(request, context):
        await script.send(context, torch.zeros(BIG.numel))

    script.steps["Pull"] = [whole, idle, whole]
    async with joined(script) as client:
        for _ in range(3):
            await client.pull(-1)
    small = CHUNK_FLOOR
    assert [request.chunk_bytes for request in script.seen["Pull"]] == [small, 0, small, 0]


async def test_silence_ends_a_call_and_is_tried_again():
    script = Script()
    for name in script.steps:
        script.steps[name].insert(0, hang)
    # On a machine with other things to do, an answer may be taken for silence too.
    async with joined(script, tries=20, idle=0.1) as client:
        assert torch.equal((await client.pull(-1)).parameters, VECTOR)
        assert (await client.push(4, VECTOR)).counted
        assert len(client.naps) >= 3


async def test_slow_is_not_silent():
    script = Script(BIG)

    async def slowly(request, context):
        data = encode_vector(torch.ones(BIG.numel))
        await context.write(ps_pb2.PullReply(manifest=script.contract.manifest(4, payload_digest(data))))
        for chunk in cut_chunks(data, 4 << 20):
            await asyncio.sleep(patience(0.07))
            await context.write(ps_pb2.PullReply.FromString(chunk))

    script.steps["Pull"] = [slowly]
    # The whole takes 8 * 0.07 s, longer than the idle time-out. On a machine with other things to do, one
    # message may take as long, but not one in each of many tries.
    async with joined(script, tries=20, idle=patience(0.5)) as client:
        assert (await client.pull(-1)).parameters.sum() == BIG.numel


async def test_another_kind_of_server_is_recognised():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}", "w00", "token", LAYOUT) as client:
            with pytest.raises(ClientError, match="Is this a Varangian server"):
                await client.join()
    finally:
        await server.stop(0)


async def test_a_vector_of_another_shape_is_the_callers_mistake():
    async with Client("127.0.0.1:9", "w00", "token", LAYOUT) as client:
        with pytest.raises(ValueError, match=r"should have shape \(8,\)\. Found \(4, 2\)"):
            await client.push(0, torch.zeros(4, 2))


def test_back_off_doubles_up_to_a_cap_and_ends():
    for _ in range(20):
        delays = list(Backoff(tries=8, first=0.5, most=4.0).delays())
        longest = [0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0]
        assert len(delays) == 7
        assert all(top / 2 <= delay <= top for delay, top in zip(delays, longest, strict=True))
    assert list(Backoff(tries=1).delays()) == []
    assert len({tuple(itertools.islice(Backoff().delays(), 3)) for _ in range(5)}) == 5
