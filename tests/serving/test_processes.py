"""A program that serves: interrupted, killed, over TLS, and with workers that come and go."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest
import torch
from tests.extent import patience
from tests.ports import free_port
from tests.serving.own import net

import varangian
from varangian.cli.main import main
from varangian.launch.result import RunError

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
PATIENCE = patience(60)
PROGRAM = """
import sys
import torch
import varangian
from tests.serving.own import net

model = net()
server = varangian.Server(
    model, workers=2, f=0, rounds=int(sys.argv[2]), aggregator="mean", seed=1, secret="0123456789abcdef",
    output=sys.argv[1], server__checkpoint={"every": 5}, server__absent_after=20.0,
    optimizer=lambda ps: torch.optim.Adam(ps, 1e-3), evaluate=lambda model: 0.0, evaluate__every=1000,
)
result = server.serve(
    sys.argv[3], resume=True, ready=lambda address: print("at", address, flush=True),
    note=lambda text: print("note:", text, flush=True),
)
print("ended:", result.outcome, result.rounds, result.digest, flush=True)
"""


@pytest.fixture
def program(tmp_path):
    """The program in a process; `read` gives its lines up to one that begins so."""
    started = []

    class Program:
        def __init__(self, rounds, address):
            root = pathlib.Path(__file__).parents[2]
            (tmp_path / "serve.py").write_text(PROGRAM)
            self.process = subprocess.Popen(
                [sys.executable, tmp_path / "serve.py", tmp_path / "runs", str(rounds), address],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=os.environ | {"PYTHONPATH": f"{pathlib.Path(varangian.__file__).parents[1]}:{root}"},
            )  # fmt: skip
            started.append(self.process)
            self.said = ""

        def read(self, beginning):
            for line in self.process.stdout:
                self.said += line
                if line.startswith(beginning):
                    return line
            raise AssertionError(self.said)

    yield Program
    for process in started:
        process.kill()
        process.communicate()


class Loops:
    """Two workers in threads, each in a loop of its own."""

    def __init__(self, address, proofs, **options):
        self.rounds, self.reasons = {name: [] for name in proofs}, {}
        self._address, self._options = address, options
        self._changed = threading.Condition()
        self.threads = [
            threading.Thread(target=self._work, args=item, daemon=True) for item in proofs.items()
        ]
        for thread in self.threads:
            thread.start()

    def _work(self, name, proof):
        module = net()
        with varangian.connect(self._address, module, name=name, momentum=0.0, **proof) as worker:
            while worker.pull():
                sum((p**2).sum() for p in module.parameters()).backward()
                worker.push()
                with self._changed:
                    self.rounds[name].append(worker.round)
                    self._changed.notify_all()
            self.reasons[name] = worker.reason

    def reach(self, round):
        with self._changed:
            there = self._changed.wait_for(
                lambda: all(done and done[-1] >= round for done in self.rounds.values()), PATIENCE
            )
        assert there, self.rounds

    def end(self):
        for thread in self.threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self.threads)
        return self.reasons


def tokens():
    server = varangian.Server(net(), workers=2, f=0, aggregator="mean", secret="0123456789abcdef")
    return {name: {"token": server.token(name)} for name in ("w00", "w01")}


def test_a_program_that_is_killed_and_interrupted_goes_on_with_the_same_bits(program):
    address = f"127.0.0.1:{free_port()}"
    first = program(60, address)
    first.read("at ")
    loops = Loops(address, tokens())
    loops.reach(12)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = program(60, address)
    assert re.search("goes on with round (5|10)", second.read("note: ") + second.read("at ") + second.said)
    loops.reach(25)
    second.process.send_signal(signal.SIGINT)
    said = second.read("ended: ")
    assert said.split()[1] == "interrupted"
    assert re.search(r"rounds are kept: varangian.Server\(...\).serve\(..., resume='", second.said)
    assert second.process.wait(PATIENCE) == 0
    third = program(60, address)
    ended = third.read("ended: ").split()
    assert ended[1:3] == ["finished", "60"]
    assert set(loops.end().values()) == {"all 60 rounds are done"}
    plain = net()
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum((p**2).sum() for p in plain.parameters()).backward()
        optimizer.step()
    whole = varangian.load(next(pathlib.Path(third.process.args[2]).iterdir()))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(whole[name], tensor, rtol=1e-4, atol=1e-5)


def test_over_tls_workers_are_admitted_and_drained_while_it_goes_on(tmp_path, capsys):
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority
    from varangian.protos.identity.bundle import Role

    authority = Authority.create(tmp_path / "ca", days=30)
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=10)
    authority.issue("alice", Role.OPERATOR, days=10)
    for name in ("w00", "w01", "w02", "w03"):
        authority.issue(name, Role.WORKER, days=10)
    server = varangian.Server(
        net(), workers=3, f=0, rounds=10**6, aggregator="median", output=str(tmp_path / "runs"),
        optimizer=lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9),
    )  # fmt: skip
    certs = {"certs": tmp_path / "ca"}
    with server.start("127.0.0.1:0", certs=tmp_path / "ca" / "server") as running:
        at = ["--server", running.address, "--certs", str(tmp_path / "ca" / "alice")]
        loops = Loops(running.address, dict.fromkeys(("w00", "w01", "w02"), certs))
        loops.reach(3)
        with pytest.raises(varangian.ClientError):
            varangian.connect(running.address, net(), name="w03", patience=1.0, **certs)
        assert main(["workers", "admit", "w03", *at]) == 0
        newcomer = Loops(running.address, {"w03": certs})
        newcomer.reach(loops.rounds["w00"][-1] + 3)
        assert main(["workers", "drain", "w01", *at]) == 0
        loops.threads[1].join(PATIENCE)
        assert "drained by the operator alice" in loops.reasons["w01"]
        running.stop("enough was seen")
        result = running.result(PATIENCE)
        assert result.reason == "enough was seen"
        assert set(newcomer.end().values()) == {"enough was seen"}
        loops.end()
    with server.start("127.0.0.1:0", certs=tmp_path / "ca" / "server", resume=result.folder) as running:
        left = Loops(running.address, dict.fromkeys(("w00", "w02", "w03"), certs))
        left.reach(result.rounds + 2)
        running.stop("enough was seen")
        assert running.result(PATIENCE).rounds > result.rounds
        left.end()
    assert main(["audit", str(result.folder)]) == 0
    assert "signed" in capsys.readouterr().out


def test_a_network_without_tls_needs_a_word(tmp_path):
    server = varangian.Server(net(), workers=2, f=0, aggregator="mean", output=str(tmp_path))
    with server.start("0.0.0.0:0", insecure=True) as running:
        running.stop()
        assert running.result(PATIENCE).rounds == 0
    with pytest.raises(RunError, match=r"should hold cert\.pem"):
        server.start("127.0.0.1:0", certs=tmp_path)
