"""A server under attack, seen from outside: what it takes, what it says, and whether it still works."""

import asyncio
import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from tests.extent import patience

from varangian.protos.identity.bundle import Bundle, ssl_contexts
from varangian.protos.layout import Layout
from varangian.server.identity.sessions import make_token
from varangian.worker.transport.client import Client
from varangian.worker.transport.retry import Backoff

VICTIM = Path(__file__).with_name("victim.py")
SECRET = b"a secret that the tests may know"
RUN = "besieged"
HONEST = ("w00", "w01")
TRAITOR = "w02"
"""A worker of the run, with a token of its own: it may send what it likes."""
MIB = 1 << 20
GROWTH = 64 * MIB
"""What an attack may take while it lasts: a few messages of 8 MiB on their way, and some slack."""
TALK = 10_000
"""Characters that an attack may have the server say."""
SLACK = 4
"""Files and threads that gRPC may keep for later."""


class Target:
    """Where a server listens, and what a worker of its run knows."""

    def __init__(self, address, numel, certs=None):
        self.address, self.numel = address, numel
        self.certs = certs
        """A directory of bundles, where all connections are TLS."""
        self.layout = Layout((("weight", (numel,)),))
        self.host, _, port = address.rpartition(":")
        self.port = int(port)

    def token(self, name):
        return make_token(name, SECRET)

    def client(self, name, kind=Client, **options):
        patient = {"backoff": Backoff(tries=100, first=0.02, most=0.2), "idle": 20.0}
        proof = Bundle.load(self.certs / name) if self.certs else self.token(name)
        return kind(self.address, name, proof, self.layout, **patient | options)

    def dial(self, name, port=None, room=None):
        """A connection that holds `room` bytes; calls go over TLS, with the certificate of this name."""
        line = socket.socket()
        try:
            line.settimeout(patience(10))
            if room is not None:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            line.connect((self.host, port or self.port))
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.certs and port is None:
                tls = ssl_contexts(self.certs / name)[1]
                tls.set_alpn_protocols(["h2"])
                line = tls.wrap_socket(line)
        except BaseException:
            line.close()
            raise
        return line


class Siege(Target):
    """One server process."""

    def __init__(self, log: Path, numel=500_000, certs=None, **options):
        self.log = log
        if certs:
            options["certs"] = certs / "server"
        flags = [f"--{name}={value}" for name, value in {"numel": numel, **options}.items()]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(VICTIM), *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
            )
        self.rounds, self._answers = [], queue.SimpleQueue()
        first = self.process.stdout.readline()
        if not first:
            self.process.communicate()
            raise RuntimeError(log.read_text())
        said = json.loads(first)
        self.bound = said["bound"]
        """Bytes that it may have at most, by its own account before anything was allocated."""
        super().__init__(said["address"], numel, certs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if "still" in said:
                self._answers.put(said["still"])
            else:
                self.rounds.append(said)

    def still(self):
        """Whether nothing happens at the server until a worker does something."""
        self.process.stdin.write("still?\n")
        self.process.stdin.flush()
        return self._answers.get(timeout=patience(60))

    def close(self):
        self.process.stdin.close()
        self.process.wait(patience(20))
        self._reader.join()
        self.process.stdout.close()

    # what the system says about the process

    @property
    def _proc(self):
        return Path(f"/proc/{self.process.pid}")

    def _status(self, key):
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
        raise KeyError(key)

    @property
    def resident(self):
        return self._status("VmRSS")

    @property
    def peak(self):
        """Bytes at most, since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self):
        (self._proc / "clear_refs").write_text("5")

    @property
    def files(self):
        return len(os.listdir(self._proc / "fd"))

    @property
    def threads(self):
        return len(os.listdir(self._proc / "task"))


class Honest:
    """Workers that only want their round; they keep their connections."""

    def __init__(self, target, names=HONEST, vectors=None, **options):
        self.target, self.names = target, names
        self.vectors = vectors or [torch.full((target.numel,), float(i + 1)) for i in range(len(names))]
        self.runner = asyncio.Runner()
        self.served = -1
        self.clients = self.runner.run(self._join(options))

    async def _join(self, options):
        clients = [self.target.client(name, **options) for name in self.names]
        await asyncio.gather(*(client.join() for client in clients))
        return clients

    def round(self):
        """One round: seconds of the pull, and of the pushes after it."""
        while (took := self.runner.run(self._round())) is None:
            pass
        return took

    async def _round(self):
        """The same; None when a proven fault has closed the round before all of them were there."""
        start = time.perf_counter()
        pulled = await asyncio.gather(*(client.pull(self.served) for client in self.clients))
        self.served = pulled[0].round
        begun = time.perf_counter()
        pushes = zip(self.clients, self.vectors, strict=True)
        receipts = await asyncio.gather(*(client.push(self.served, vector) for client, vector in pushes))
        if {receipt.code for receipt in receipts if not receipt.counted} == {"STALE"}:
            return None
        assert all(receipt.counted for receipt in receipts), receipts
        return begun - start, time.perf_counter() - begun

    def close(self):
        async def leave():
            for client in self.clients:
                await client.close()

        self.runner.run(leave())
        self.runner.close()


def settled(probe, wanted, limit=60.0):
    """The last value of a probe, once it is wanted or the time is over."""
    end = time.monotonic() + patience(limit)
    while not wanted(value := probe()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def unharmed(siege, honest):
    """The server may be attacked here, and has to be as before when it is over."""
    honest.round()
    settled(lambda: siege.rounds and siege.rounds[-1]["round"], lambda last: last == honest.served)
    files, threads, resident = siege.files, siege.threads, siege.resident
    said = siege.log.stat().st_size
    siege.forget_peak()
    yield
    honest.round()
    assert siege.process.poll() is None
    assert siege.peak - resident < GROWTH
    log = siege.log.read_bytes()[said:].decode()
    assert len(log) < TALK
    assert "Traceback" not in log
    assert not [line for line in log.splitlines() if line.startswith(("ERROR", "CRITICAL"))]
    assert settled(lambda: siege.files, lambda count: count <= files + SLACK) <= files + SLACK
    assert settled(lambda: siege.threads, lambda count: count <= threads + SLACK) <= threads + SLACK
