"""Enrolment over real connections."""

import asyncio
import ssl

import grpc
import pytest
from tests.enrolling import enrolling
from tests.extent import patience

from varangian.pki import x509
from varangian.protos import ps_pb2, ps_pb2_grpc
from varangian.protos.identity.bundle import Role
from varangian.protos.metadata_keys import CODE
from varangian.protos.network.dial import open_aio_channel


@pytest.fixture
def cluster(authority):
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1)
    return authority


def ca(cluster):
    return (cluster.path / "server/ca.pem").read_bytes()


def asked(name="w15"):
    return x509.make_request(x509.make_key(), name)


def dial(address, roots):
    return open_aio_channel(address, grpc.ssl_channel_credentials(roots))


async def enrol(channel, **fields):
    """The reply, or the code of the refusal."""
    try:
        stub = ps_pb2_grpc.ParameterServerStub(channel)
        return await stub.Enrol(ps_pb2.EnrolRequest(**fields), timeout=patience(20))
    except grpc.aio.AioRpcError as error:
        return dict(error.trailing_metadata() or ()).get(CODE) or error.code()


async def test_from_a_token_to_a_certificate(cluster, tmp_path):
    request = asked()
    async with (
        enrolling(cluster.path, tmp_path) as port,
        dial(port.address, ca(cluster)) as channel,
    ):
        reply = await enrol(channel)
        assert (reply.authority, reply.certificate) == (ca(cluster), b"")
        shown = {"token": port.enrolment.invite("w15", "alice"), "name": "w15", "request": request}
        for _ in range(2):
            reply = await enrol(channel, **shown)
            assert (reply.certificate, reply.waiting) == (
                b"",
                "an operator: varangian workers admit w15 --authority DIR",
            )
        cluster.issue("w15", Role.WORKER, days=1, request=port.enrolment.request_of("w15"))
        port.enrolment.deliver("w15", (cluster.path / "w15/cert.pem").read_bytes())
        replies = [await enrol(channel, **shown) for _ in range(2)]
        assert {reply.certificate for reply in replies} == {(cluster.path / "w15/cert.pem").read_bytes()}
        assert port.refused == {}


async def test_the_port_knows_no_other_call(cluster, tmp_path):
    async with (
        enrolling(cluster.path, tmp_path) as port,
        dial(port.address, ca(cluster)) as channel,
    ):
        stub = ps_pb2_grpc.ParameterServerStub(channel)
        calls = (
            (stub.Status, ps_pb2.StatusRequest()),
            (stub.Join, ps_pb2.JoinRequest()),
            (stub.Members, ps_pb2.MembersRequest(action="list")),
            (stub.Leave, ps_pb2.LeaveRequest()),
        )
        for call, message in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(message, timeout=patience(20))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_after_five_wrong_tokens_none_is_looked_at_also_a_right_one(cluster, tmp_path, caplog):
    async with (
        enrolling(cluster.path, tmp_path) as port,
        dial(port.address, ca(cluster)) as channel,
    ):
        shown = {"token": port.enrolment.invite("w15", "alice"), "name": "w15", "request": asked()}
        wrong = {**shown, "token": "A" * 80}
        assert [await enrol(channel, **wrong) for _ in range(6)] == [*["ENROLMENT"] * 5, "GUESSES"]
        assert await enrol(channel, **shown) == "GUESSES"
        assert port.enrolment.request_of("w15") == b""
        assert port.refused == {"ENROLMENT": 5, "GUESSES": 2}
        said = [record.getMessage() for record in caplog.records]
        assert sum(text.startswith("security: ENROLMENT from 127.0.0.1: ") for text in said) == 5
        assert not any("A" * 20 in text for text in said)
        # What everybody may have is still to be had.
        assert (await enrol(channel)).authority == ca(cluster)


async def test_hostile_bytes(cluster, tmp_path):
    async with (
        enrolling(cluster.path, tmp_path) as port,
        dial(port.address, ca(cluster)) as channel,
    ):
        token = port.enrolment.invite("w15", "alice")
        call = channel.unary_unary("/varangian.v1.ParameterServer/Enrol")
        codes = []
        many_fields = b"\x20\x01" * 3000
        for content in (b"\xff" * 100, many_fields, b"\x0a\xff\xff\xff\xff\x0f", bytes(1 << 20)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(content, timeout=patience(20))
            codes.append(dict(caught.value.trailing_metadata() or ()).get(CODE) or caught.value.code())
        assert codes == ["MALFORMED", "MALFORMED", "MALFORMED", grpc.StatusCode.RESOURCE_EXHAUSTED]
        for request in (b"x" * 6000, b"", asked("w16"), asked()[:-60]):
            assert await enrol(channel, token=token, name="w15", request=request) == "ENROLMENT"
        assert port.enrolment.request_of("w15") == b""


async def test_a_connection_without_tls_gets_nothing(cluster, tmp_path):
    async with enrolling(cluster.path, tmp_path) as port, open_aio_channel(port.address) as channel:
        assert await enrol(channel) is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_of_the_server_is_shown_here_too(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("varangian.protos.identity.watched_files.FILE_CHECK_INTERVAL", 0.0)
    async with enrolling(cluster.path, tmp_path) as port:
        host, _, number = port.address.rpartition(":")
        seen = []
        for _ in range(2):
            own = (cluster.path / "server/cert.pem").read_text()
            seen.append(await asyncio.to_thread(ssl.get_server_certificate, (host, int(number))) == own)
            cluster.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1, force=True)
        assert seen == [True, True]
