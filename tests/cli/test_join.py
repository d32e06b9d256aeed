"""`varangian join` against a real port for enrolment."""

import asyncio
import contextlib
import io
import shutil
import socket
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import grpc.aio
import pytest
from tests.enrolling import enrolling
from tests.extent import patience
from tests.ports import free_port

from varangian.cli.commands import join
from varangian.cli.main import INTERRUPTED, main
from varangian.pki import x509
from varangian.pki.authority import days_left
from varangian.protos import ps_pb2
from varangian.protos.errors import Refused
from varangian.protos.identity.bundle import Bundle, Role
from varangian.protos.identity.enrolment_token import EnrolmentToken
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.transport.administration import Administration, Changed
from varangian.server.transport.calls import Call
from varangian.server.transport.grpc_server import bind
from varangian.server.transport.refusals import Refusals


@pytest.fixture
def cluster(authority):
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1)
    return authority


class Joining:
    """The command in a thread: the exit code, and what it has printed."""

    def __init__(self):
        self._printed, self._over = io.StringIO(), threading.Event()

    async def __call__(self, address, token, *more):
        self._over.clear()
        words, self._printed = ["join", address, "--token", token, *more], io.StringIO()
        with contextlib.redirect_stdout(self._printed), contextlib.redirect_stderr(self._printed):
            try:
                async with asyncio.timeout(patience(30)):
                    code = await asyncio.to_thread(main, words)
            except TimeoutError:
                raise AssertionError(self._printed.getvalue()) from None
            finally:
                self.interrupt()
        return code, self._printed.getvalue()

    async def says(self, text):
        """Until it has printed this."""
        async with asyncio.timeout(patience(30)):
            while text not in self._printed.getvalue():
                await asyncio.sleep(0.01)

    def interrupt(self):
        """As by Ctrl-C while it waits."""
        self._over.set()

    def sleep(self, seconds):
        if self._over.wait(min(seconds, 0.05)):
            raise KeyboardInterrupt


@pytest.fixture
def joining(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = Joining()
    monkeypatch.setattr(join, "time", SimpleNamespace(monotonic=time.monotonic, sleep=made.sleep))
    yield made
    made.interrupt()


async def admitted(enrolment, cluster, name="w15"):
    """The certificate, once the request is there."""
    async with asyncio.timeout(patience(10)):
        while not (request := enrolment.request_of(name)):
            await asyncio.sleep(0.01)
    cluster.issue(name, Role.WORKER, days=1, request=request)
    certificate = (cluster.path / name / "cert.pem").read_bytes()
    enrolment.deliver(name, certificate)
    return certificate


async def test_a_new_worker_gets_its_certificate_and_its_key_stays(joining, cluster, tmp_path):
    async with enrolling(cluster.path, tmp_path) as port:
        token = port.enrolment.invite("w15", "alice")
        (code, said), certificate = await asyncio.gather(
            joining(port.address, token, "--into", "site"), admitted(port.enrolment, cluster)
        )
        key = (tmp_path / "site/w15/key.pem").read_bytes()
        assert code == 0
        bundle = Bundle.load(tmp_path / "site/w15", Role.WORKER)
        assert (bundle.name, bundle.certificate) == ("w15", certificate)
        assert stat.S_IMODE((tmp_path / "site/w15/key.pem").stat().st_mode) == 0o600
        assert {path.name for path in bundle.path.iterdir()} == {"ca.pem", "cert.pem", "key.pem"}
        first, second, *_ = said.splitlines()
        assert first == "made the key of w15 in site/w15; it stays on this machine"
        assert second.startswith("its public key is ")
        assert "waiting for an operator: varangian workers admit w15 --authority DIR" in said
        assert "next: varangian worker --server 127.0.0.1:PORT --certs site/w15" in said
        code, said = await joining(port.address, token, "--into", "site")
        assert (code, said.partition(",")[0]) == (0, "kept site/w15")
        assert (tmp_path / "site/w15/key.pem").read_bytes() == key


async def test_an_answer_that_is_lost_is_asked_for_again(joining, cluster, tmp_path, monkeypatch):
    async with enrolling(cluster.path, tmp_path) as port:
        ask, answers = port.enrolment.ask, []

        def lose(*shown):
            if answer := ask(*shown):
                answers.append(answer)
                if len(answers) == 1:
                    raise ConnectionError
            return answer

        monkeypatch.setattr(port.enrolment, "ask", lose)
        token = port.enrolment.invite("w15", "alice")
        (code, _), certificate = await asyncio.gather(
            joining(port.address, token), admitted(port.enrolment, cluster)
        )
        assert (code, answers) == (0, [certificate] * 2)
        assert Bundle.load(tmp_path / "w15").certificate == certificate


async def test_a_command_that_was_killed_goes_on_with_its_key(joining, cluster, tmp_path):
    token = ""
    async with enrolling(cluster.path, tmp_path) as port:
        token = port.enrolment.invite("w15", "alice")
        Path("w15").mkdir()
        first = asyncio.create_task(joining(port.address, token))
        certificate = await admitted(port.enrolment, cluster)
        await first
        key = Path("w15/key.pem").read_bytes()
        for name in ("cert.pem", "ca.pem"):  # as if it had been killed before it wrote them
            Path("w15", name).unlink()
        code, said = await joining(port.address, token)
        assert (code, said.startswith("kept the key of w15")) == (0, True)
        assert (Path("w15/key.pem").read_bytes(), Path("w15/cert.pem").read_bytes()) == (key, certificate)


async def test_a_server_that_is_restarted_between_request_and_approval(joining, cluster, tmp_path):
    number = free_port()
    async with enrolling(cluster.path, tmp_path, port=number) as port:
        token = port.enrolment.invite("w15", "alice")
        asking = asyncio.create_task(joining(port.address, token))
        async with asyncio.timeout(patience(10)):
            while not port.enrolment.request_of("w15"):
                await asyncio.sleep(0.01)
    async with enrolling(cluster.path, tmp_path, port=number) as port:
        certificate = await admitted(port.enrolment, cluster)
        assert (await asking)[0] == 0
    assert Bundle.load(tmp_path / "w15").certificate == certificate


async def test_a_server_of_another_authority_is_not_shown_the_token(joining, cluster, bundles, tmp_path):
    async with enrolling(cluster.path, tmp_path) as port:
        token = EnrolmentToken.make("w15", (bundles / "ours/server/ca.pem").read_bytes())
        code, said = await joining(port.address, token.text)
        assert code == 1
        assert "should be of the authority that the token names. Found another one" in said
        assert port.refused == {}


class Between:
    """Somebody on the way, with a certificate of his own and everything that is public."""

    def __init__(self, authority):
        self.authority, self.shown = authority, []

    def service(self, details):
        async def enrol(data, context):
            request = ps_pb2.EnrolRequest.FromString(data)
            self.shown += [request.token] if request.token else []
            return ps_pb2.EnrolReply(authority=self.authority).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(enrol)


async def test_somebody_on_the_way_is_not_shown_the_token(joining, cluster, bundles, tmp_path):
    """He passes on the right `ca.pem`, which is public, and has a certificate of another authority."""
    ours = (cluster.path / "server/ca.pem").read_bytes()
    between = Between(ours)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((between,))
    address = bind(server, "127.0.0.1", 0, Security(bundles / "theirs").one_way_credentials())
    await server.start()
    try:
        code, said = await joining(address, EnrolmentToken.make("w15", ours).text)
        assert (code, between.shown) == (1, [])
        assert f"the certificate of {address} should be valid. OpenSSL says: " in said
        between.authority = (bundles / "theirs/server/ca.pem").read_bytes()
        code, said = await joining(address, EnrolmentToken.make("w15", ours).text)
        assert (code, between.shown) == (1, [])
        assert "or somebody is on the way to this one. It was not shown the token" in said
    finally:
        await server.stop(0)


async def test_a_server_that_does_not_answer_is_waited_for(joining, cluster, tmp_path):
    number = free_port()
    Path("run").mkdir()
    async with enrolling(cluster.path, Path("run")) as before:
        token = before.enrolment.invite("w15", "alice")
    asking = asyncio.create_task(joining(f"127.0.0.1:{number}", token))
    await joining.says("waiting for the server")
    async with enrolling(cluster.path, Path("run"), port=number) as port:
        await admitted(port.enrolment, cluster)
        code, said = await asking
    assert code == 0
    assert f"waiting for the server 127.0.0.1:{number}. It cannot be reached: Connection refused." in said


async def test_a_refusal_ends_it(joining, cluster, tmp_path):
    async with enrolling(cluster.path, tmp_path) as port:
        token = EnrolmentToken.make("w15", port.enrolment.authority)
        code, said = await joining(port.address, token.text)
        assert code == 1
        assert f"{port.address} refuses: ENROLMENT: A certificate should be asked for with a token" in said
        assert token.text not in said


async def test_the_port_of_workers_is_named_as_such(joining, cluster, tmp_path):
    server = grpc.aio.server()
    address = bind(server, "127.0.0.1", 0, Security(cluster.path).credentials())
    await server.start()
    try:
        asking = asyncio.create_task(joining(address, EnrolmentToken.make("w15", b"").text))
        await joining.says("is this the port of workers")
        joining.interrupt()
        assert (await asking)[0] == INTERRUPTED
    finally:
        await server.stop(0)


async def test_a_server_under_another_name_is_not_shown_the_token(joining, authority, tmp_path):
    authority.issue("server", Role.SERVER, hosts=["ps.test"], days=1)
    async with enrolling(authority.path, tmp_path, host="127.0.0.2") as port:
        code, said = await joining(port.address, port.enrolment.invite("w15", "alice"))
        assert (code, port.enrolment.request_of("w15")) == (1, b"")
    assert f"the certificate of {port.address} should name '127.0.0.2'. Join at a name that it has" in said


class Desk:
    """Takes everybody in."""

    round = 7

    def listing(self):
        return []

    async def change(self, action, name, f, by):
        return Changed(f"{name} is a member from round 8 on", 8)


@contextlib.asynccontextmanager
async def administered(bundle, enrolment):
    """The port where operators call; yields its address."""
    security = Security(bundle)
    sessions = Sessions(["w00"], None, certificate_reader=security.certificate_reader)
    administration = Administration(sessions, Desk(), "run-1", enrolment)

    async def members(_, context):
        call = Call(context)
        try:
            return await administration.members(call, 10)
        except Refused as error:
            refused = error
        return await Refusals().answer(call, "a stranger", refused, 7)

    server = grpc.aio.server()
    handler = {"Members": grpc.stream_unary_rpc_method_handler(members)}
    service = grpc.method_handlers_generic_handler("varangian.v1.ParameterServer", handler)
    server.add_generic_rpc_handlers((service,))
    address = bind(server, "127.0.0.1", 0, security.credentials())
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


async def test_an_operator_invites_looks_and_signs_where_the_authority_is(
    joining, cluster, tmp_path, capsys
):
    cluster.issue("alice", Role.OPERATOR, days=1)

    def workers(action, *more):
        argv = ["workers", action, *more, "--server", address, "--certs", str(cluster.path / "alice")]
        code = main(argv)
        return code, *capsys.readouterr()

    async with (
        enrolling(cluster.path, tmp_path) as port,
        administered(cluster.path, port.enrolment) as address,
    ):
        code, out, err = await asyncio.to_thread(workers, "invite", "w15")
        assert (code, EnrolmentToken.parse(out).name) == (0, "w15")
        assert "for w15, one key and one day" in err
        said = (await asyncio.to_thread(workers, "list"))[1]
        assert "w15 is invited until 20" in said
        Path("w15.token").write_text(out)
        asking = asyncio.create_task(
            asyncio.to_thread(main, ["join", port.address, "--token-file", "w15.token"])
        )
        async with asyncio.timeout(patience(10)):
            while not (request := port.enrolment.request_of("w15")):
                await asyncio.sleep(0.01)
        key = x509.key_fingerprint(request)
        said = (await asyncio.to_thread(workers, "list"))[1]
        assert f"w15 waits for a certificate for the public key {key}" in said
        admit = "admit", "w15", "--authority", str(cluster.path), "--fingerprint"
        for wrong in ("0" * 64, key[:15], "w15"):
            code, _, err = await asyncio.to_thread(workers, *admit, wrong)
            assert (code, "Nothing was signed" in err) == (1, True)
        assert "w15" not in {one.name for one in cluster.issued()}
        code, _, err = await asyncio.to_thread(workers, "admit", "w15", "--days", "2")
        assert (code, "--days should be with --authority" in err) == (1, True)
        code, _, err = await asyncio.to_thread(workers, "admit", "w15", "--fingerprint", key[:16])
        assert (code, "--fingerprint should be with --authority" in err) == (1, True)
        code, out, _ = await asyncio.to_thread(workers, *admit, key[:16].upper(), "--days", "2.5")
        assert (code, "w15 is a member from round 8 on" in out) == (0, True)
        (signed,) = (one for one in cluster.issued() if one.name == "w15")
        assert days_left(signed) == pytest.approx(2.5, abs=0.1)
        async with asyncio.timeout(patience(10)):
            assert await asking == 0
        assert Bundle.load(tmp_path / "w15").name == "w15"
        code, _, err = await asyncio.to_thread(workers, *admit, key)
        assert (code, "w15 should wait for its certificate. It does not" in err) == (1, True)


@contextlib.contextmanager
def answering(words):
    """A port that says something else than TLS."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve():
            connection = listener.accept()[0]
            connection.sendall(words)
            connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


async def test_a_port_without_tls_is_named_as_such(joining):
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        code, said = await joining(address, EnrolmentToken.make("w15", b"").text)
    assert (code, f"{address} should speak TLS 1.3, as the port of server.enrol_port does" in said) == (
        1,
        True,
    )


def test_tokens_and_folders_that_are_no_use(varangian, bundles, tmp_path):
    token = EnrolmentToken.make("w00", b"").text
    for argv, said in (
        (("--token", "w15"), "--token should be"),
        (("--token-file", "none"), "none should be readable. The system says: No such file"),
        ((), "one of the arguments --token --token-file is required"),
    ):
        assert said in "".join(varangian("join", "127.0.0.1:1", *argv)[1:])
    assert "should be HOST:PORT" in varangian("join", "127.0.0.1", "--token", token)[2]
    shutil.copytree(bundles / "ours/w00", "w00")
    code, _, said = varangian("join", "127.0.0.1:1", "--token", token)
    assert (code, "w00 should have no certificate yet. Found that of the worker w00" in said) == (1, True)
    Path("w00/cert.pem").write_bytes(b"")
    code, _, said = varangian("join", "127.0.0.1:1", "--token", token)
    assert (code, "w00 has a certificate already" in said) == (1, True)
