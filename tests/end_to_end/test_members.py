"""Workers that join and leave a run while it goes on, as commands: what an operator types and reads."""

import json
import re
import signal

import pytest
from tests.end_to_end.kit import PATIENCE, SMALL, Served, eventually
from tests.history import Rules, check, of_record
from tests.ports import free_port

from varangian.protos.identity.bundle import Role

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
SETTINGS = [*SMALL, "rounds=1000000", "aggregator=nnm+median", "server.checkpoint.every=3"]
KEPT = ["server.quorum=3", "server.keep_rows=3"]


@pytest.fixture
def cluster(tmp_path):
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority

    authority = Authority.create(tmp_path / "ca", days=30)
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=10)
    authority.issue("alice", Role.OPERATOR, days=10)
    for i in range(6):
        authority.issue(f"w0{i}", Role.WORKER, days=10)
    return authority.path


class Run:
    """A server of real workers, and its operator."""

    def __init__(self, started, cluster, folder, settings):
        self.started, self.cluster, self.folder, self.settings = started, cluster, folder, settings
        self.address = f"127.0.0.1:{free_port()}"
        self.serve(self.address)
        assert self.server.address() == self.address

    def serve(self, address, *options):
        command = ["server", *self.settings, "--certs", str(self.cluster / "server"), "--format", "json"]
        self.server = Served(self.started(*command, "--bind", address, *options))

    def worker(self, *names):
        certs = self.cluster / names[0] if len(names) == 1 else self.cluster
        chosen = [] if len(names) == 1 else [f"--name={name}" for name in names]
        return self.started(
            "worker", *self.settings, "--server", self.address, "--certs", str(certs), *chosen
        )

    def operator(self, *words, by="alice"):
        """What a command of the operator prints."""
        command = ("workers", *words, "--server", self.address, "--certs", str(self.cluster / by))
        out, err = self.started(*command).communicate(timeout=PATIENCE)
        return out or err

    def records(self):
        (folder,) = (self.folder / "runs").iterdir()
        lines = (folder / "rounds.jsonl").read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def pushed(self, worker, since=0):
        """Whether a vector of this worker counted, after so many lines."""
        return any(worker in (record["pushes"] or ()) for record in self.records()[since:])


@pytest.mark.parametrize("participation", ["sync", "fedlaavg", "{async: {buffer: 3}}"])
def test_workers_join_and_leave_a_run_that_goes_on(started, cluster, tmp_path, participation):
    run = Run(started, cluster, tmp_path, [*SETTINGS, f"participation={participation}", *KEPT])
    rest, drained, expelled = run.worker("w00", "w02", "w04"), run.worker("w03"), run.worker("w01")
    assert eventually(lambda: all(map(run.pushed, ("w00", "w01", "w03"))))

    assert "w03 is gone from round" in run.operator("drain", "w03")
    out, err = drained.communicate(timeout=PATIENCE)
    assert drained.returncode == 0, err
    assert "w03 has left the run: it was drained by the operator alice" in err
    assert ": 3 workers, quorum" in run.operator("expel", "w01", "--f", "0")
    out, err = expelled.communicate(timeout=PATIENCE)
    assert (expelled.returncode, "it was expelled by the operator alice. [EXPELLED]" in err) == (1, True)
    refused = run.operator("drain", "w00", "--f", "5")
    assert "varangian: w00 cannot be drained: f: should be below the number of workers, 2." in refused
    assert "w05 is a member from round" in run.operator("admit", "w05")
    joined = run.worker("w05")
    assert eventually(lambda: run.pushed("w05"))
    # It outlives the server, whose last checkpoint may be older.
    run.server.process.kill()
    run.server.process.wait(PATIENCE)
    before = len(run.records())
    run.serve(run.address, "--resume")
    assert eventually(lambda: all(run.pushed(name, before) for name in ("w00", "w02", "w04", "w05")))

    rows = [json.loads(line) for line in run.operator("list", "--json").splitlines()]
    assert [(row["name"], row["state"]) for row in rows] == [
        (name, "member") for name in ("w00", "w02", "w04", "w05")
    ]
    assert run.operator("leave", by="w05").startswith("w05 leaves the run: it is gone from round ")
    assert joined.wait(PATIENCE) == 0
    run.server.process.send_signal(signal.SIGTERM)
    run.server.process.stdout.read()
    assert run.server.process.wait(PATIENCE) == 0, run.server.all_said()
    assert rest.poll() is None

    records = run.records()
    gone = {name for record in records for name in (record["membership"] or {}).get("gone", ())}
    assert gone >= {"w03", "w01", "w05"}
    assert not any(record["dropped"] for record in records), "leaving spends nothing"
    members = {f"w0{i}" for i in range(5)}
    for record in records:
        members = set((record["membership"] or {}).get("workers", members))
        assert set(record["pushes"] or ()) <= members
    (folder,) = (tmp_path / "runs").iterdir()
    events = [{**event, "quorum": 1} for event in of_record(folder / "rounds.jsonl")]
    assert check(events, Rules(1, 1)) == []
    audit = started("audit", "--recompute", str(folder))
    out, err = audit.communicate(timeout=PATIENCE)
    assert (audit.returncode, "recomputed from kept rows, the same bits" in out) == (0, True), (out, err)


def test_a_new_worker_enrols_although_its_server_crashes_meanwhile(started, cluster, tmp_path):
    settings = [*SETTINGS, "server.quorum=3", f"server.enrol_port={free_port()}"]
    run = Run(started, cluster, tmp_path, settings)
    rest = run.worker("w00", "w01", "w02", "w03", "w04")
    enrols = re.compile(r"certificates at (127\.0\.0\.1:\d+)")
    assert eventually(lambda: enrols.search(run.server.said()))
    port = enrols.search(run.server.said())[1]
    (tmp_path / "token").write_text(run.operator("invite", "w09"))
    join = Served(started("join", port, "--token-file", "token", "--into", "site"))
    assert eventually(lambda: "waiting for an operator" in join.said()), join.said()

    # It is killed between the request and the approval.
    assert eventually(lambda: run.pushed("w00"))
    run.server.process.kill()
    run.server.process.wait(PATIENCE)
    run.serve(run.address, "--resume")
    assert eventually(lambda: enrols.search(run.server.said())), run.server.said()
    assert "w09 waits for a certificate for the public key" in run.operator("list")
    said = run.operator("admit", "w09", "--authority", str(cluster))
    assert "w09 is a member from round" in said
    assert join.process.wait(PATIENCE) == 0, join.said()
    assert not (cluster / "w09/key.pem").exists()
    command = ["worker", *run.settings, "--server", run.address]
    joined = started(*command, "--certs", "site/w09")
    assert eventually(lambda: run.pushed("w09"))
    assert rest.poll() is None
    assert joined.poll() is None
