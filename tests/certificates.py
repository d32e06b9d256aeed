"""Certificates made for the tests: servers, workers and an operator of two authorities, also bad ones."""

import contextlib
import shutil
from pathlib import Path

import grpc.aio
import pytest

from varangian.protos.identity.bundle import Role


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Directories by what they are; nothing may be changed in them."""
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority

    path = tmp_path_factory.mktemp("bundles")
    ours = Authority.create(path / "ours", days=30)
    ours.issue("server", Role.SERVER, hosts=["parameter-server.test"], days=10)
    for name in ("w00", "w01"):
        ours.issue(name, Role.WORKER, days=10)
    ours.issue("alice", Role.OPERATOR, days=10)
    ours.issue("expired", Role.WORKER, days=-1)
    ours.issue("server", Role.SERVER, days=-1, into=path / "expired")
    theirs = Authority.create(path / "theirs", days=30)
    theirs.issue("server", Role.SERVER, days=10)
    theirs.issue("w00", Role.WORKER, days=10)
    return path


@pytest.fixture
def authority(tmp_path):
    """One that a test may change."""
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority

    return Authority.create(tmp_path / "authority", days=30)


@pytest.fixture
def copied(bundles, tmp_path):
    """A copy of a bundle that a test may spoil."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(bundles / name, tmp_path / name))

    copy.path = tmp_path
    return copy


@pytest.fixture
def listening():
    """A gRPC server with one call, `/x/y`, which returns what the channel proves; yields its port."""

    @contextlib.asynccontextmanager
    async def listen(credentials=None, host="127.0.0.1"):
        seen = []

        async def handle(request, context):
            seen.append(context.auth_context())
            return b""

        server = grpc.aio.server()
        method = {"y": grpc.unary_unary_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x", method),))
        address = f"{host}:0"
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        await server.start()
        try:
            yield port, seen
        finally:
            await server.stop(0)

    return listen
