from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal
from varangian.server.identity.sessions import Sessions
from varangian.server.observability.metric_table import METRICS, as_markdown
from varangian.server.observability.metrics import Facts, Metrics
from varangian.server.observability.record import RoundRecord
from varangian.server.observability.traffic import Traffic
from varangian.server.participation.sync import Sync
from varangian.server.protocol.events import Offer, Push
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy

WORKERS = ("w00", "w01", "w02", "w03")
RECORD = RoundRecord(
    round=0,
    loss=0.5,
    accuracy=0.9,
    metrics={"f1": 0.8},
    weights={"w00": 0.5, "w01": 0.5, "w02": 0.0},
    effective=2.0,
    dropped={"w03": "not finite"},
    missing=("w03",),
    waited_for=("w03",),
    quorum_after=0.02,
    update_norm=3.0,
    lr=0.1,
    pushes={"w00": "aa", "w01": "bb", "w02": "cc"},
    seconds={"wait": 0.05, "aggregate": 0.004, "step": 0.0005},
    aggregation={"gram": 0.003},
)


class Server:
    """The parts of a server that metrics read, on a clock of the test."""

    def __init__(self):
        self.now = 100.0
        policy = RunPolicy(WORKERS, 10, 3, 60.0, "wait", 1, selection=Sync().selection(4, 1))
        self.machine = Machine(policy)
        self.sessions = Sessions(WORKERS, b"s" * 16, clock=lambda: self.now)
        self.refused = {"STALE": 2}
        self.traffic = Traffic()
        self.facts = Facts(
            run="a-run",
            machine=self.machine,
            sessions=self.sessions,
            refused=self.refused,
            traffic=self.traffic,
            now=lambda: self.now,
            wall=lambda: 1e9 + self.now,
            row_bytes=lambda: 4096,
            updates=5,
        )
        self.metrics = Metrics(self.facts)

    def join(self, name):
        metadata = {
            "varangian-worker": name,
            "varangian-token": self.sessions.token(name),
            "varangian-session": "0" * 32,
        }
        self.sessions.claim(metadata.items())

    def read(self):
        """Samples by name; labels come after it, with a comma before each and bounds of buckets last."""
        self.metrics._made = None
        text = self.metrics.exposition().decode()
        return {
            ",".join((sample.name, *labels_of(sample))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def labels_of(sample):
    return [value for _, value in sorted(sample.labels.items(), key=lambda label: label[0] == "le")]


@pytest.fixture
def server():
    return Server()


def test_where_a_run_stands(server):
    for name in WORKERS[:2]:
        server.machine.handle(Offer(name, 0, b"d", 101.0))
        server.machine.handle(Push(name, 0, b"d", 101.0))
    server.now = 101.0
    found = server.read()
    assert found["varangian_round"] == found["varangian_first_round"] == 0
    assert (found["varangian_rounds"], found["varangian_run_finished"]) == (10, 0)
    assert (found["varangian_workers"], found["varangian_counted_workers"]) == (4, 2)
    assert (found["varangian_awaited_workers"], found["varangian_quorum"], found["varangian_f"]) == (
        2,
        3,
        1,
    )
    assert found["varangian_model_version"] == 5
    assert found["varangian_rows_bytes"] == 4096
    assert found["varangian_last_round_timestamp_seconds"] == 1e9 + 100
    assert found["process_resident_memory_bytes"] > 0


def test_what_the_record_of_a_round_says(server):
    server.metrics.observe(RECORD)
    found = server.read()
    assert found["varangian_rounds_total,update"] == 1
    assert found["varangian_rounds_total,skipped"] == 0
    assert found["varangian_model_version"] == 6
    assert (found["varangian_loss"], found["varangian_accuracy"]) == (0.5, 0.9)
    assert found["varangian_score,f1"] == 0.8
    assert (found["varangian_effective_workers"], found["varangian_update_norm"]) == (2.0, 3.0)
    assert [found[f"varangian_worker_weight,{name}"] for name in WORKERS] == [0.5, 0.5, 0.0, 0.0]
    assert [found[f"varangian_worker_vectors_total,{name}"] for name in WORKERS] == [1, 1, 1, 0]
    assert (
        found["varangian_worker_dropped_total,w03"] == found["varangian_worker_waited_for_total,w03"] == 1
    )


def test_phases_fall_into_buckets(server):
    server.metrics.observe(RECORD)
    server.metrics.observe(replace(RECORD, seconds={"wait": 4000.0}, quorum_after=0.01))
    found = server.read()
    assert found["varangian_round_seconds_bucket,wait,0.03"] == 0
    assert found["varangian_round_seconds_bucket,wait,0.1"] == 1
    assert found["varangian_round_seconds_bucket,wait,1000.0"] == 1
    assert found["varangian_round_seconds_bucket,wait,+Inf"] == 2
    assert found["varangian_round_seconds_count,wait"] == 2
    assert found["varangian_round_seconds_sum,wait"] == pytest.approx(4000.05)
    assert found["varangian_round_seconds_count,gram"] == 2
    # A bound belongs to its bucket.
    assert found["varangian_quorum_wait_seconds_bucket,0.01"] == 1
    assert found["varangian_quorum_wait_seconds_count"] == 2


def test_rounds_in_a_row_with_next_to_no_weight(server):
    def after(weights, dropped=()):
        server.metrics.observe(replace(RECORD, weights=weights, dropped=dict.fromkeys(dropped, "")))
        found = server.read()
        return [found.get(f"varangian_worker_unweighted_rounds,{name}") for name in WORKERS]

    assert after({"w00": 0.999, "w01": 0.001, "w02": 0.0}) == [0, 1, 1, None]
    # A worker without a vector keeps its count, and one whose vector is dropped has no weight.
    assert after({"w00": 0.5, "w01": 0.5}, dropped=("w03",)) == [0, 0, 1, 1]
    assert after({"w00": 1.0, "w01": 0.01, "w02": 0.0, "w03": 0.0}) == [0, 0, 2, 2]
    assert after(None) == [0, 0, 2, 2]


def test_workers_come_and_go(server):
    server.join("w00")
    server.now += 7.0
    found = server.read()
    assert found["varangian_worker_last_seen_seconds,w00"] == 7.0
    assert "varangian_worker_last_seen_seconds,w01" not in found
    with server.sessions.calling("w00"):
        found = server.read()
        assert found["varangian_worker_last_seen_seconds,w00"] == 0.0
        assert found["varangian_worker_connected,w00"] == 1
        assert found["varangian_worker_connected,w01"] == 0
    membership = {"admitted": ["w04"], "gone": {"w03": "left"}}
    server.metrics.observe(replace(RECORD, membership=membership))
    server.sessions.depart("w03", "left")
    found = server.read()
    assert found["varangian_membership_changes_total,admitted"] == 1
    assert not [name for name in found if "w03" in name], "a series for each worker that ever was"


def test_every_push_has_one_outcome(server):
    traffic = server.traffic
    with traffic.push():
        pass
    with traffic.push() as push:
        push.outcome = "duplicate"
    for refusal in (Refusal.STALE, Refusal.STALE, Refusal.UNSOUND):
        with pytest.raises(Refused), traffic.push():
            raise Refused(refusal)
    with pytest.raises(KeyboardInterrupt), traffic.push():
        raise KeyboardInterrupt
    traffic.received["data"] += 100
    found = server.read()
    assert found["varangian_pushes_total,counted,"] == found["varangian_pushes_total,duplicate,"] == 1
    assert found["varangian_pushes_total,refused,STALE"] == 2
    assert found["varangian_pushes_total,fault,UNSOUND"] == found["varangian_pushes_total,cut,"] == 1
    assert found["varangian_refusals_total,STALE"] == 2
    assert (found["varangian_received_bytes_total,data"], found["varangian_sent_bytes_total,grpc"]) == (
        100,
        0,
    )


def test_many_that_ask_cost_no_more_than_one(server):
    first = server.metrics.exposition()
    server.metrics.observe(RECORD)
    assert server.metrics.exposition() is first


def test_every_family_is_in_the_table_with_its_kind(server):
    server.join("w00")
    server.metrics.observe(replace(RECORD, ages=dict.fromkeys(WORKERS, 1)))
    families = [*text_string_to_metric_families(server.metrics.exposition().decode())]
    ours = [family for family in families if family.name.startswith("varangian")]
    for family in ours:
        name = family.name + "_total" * (family.type == "counter")
        assert METRICS[name].kind == family.type
        assert "](" not in family.documentation
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(METRICS[name].labels)
    assert len(ours) > 40
    assert {line.split("`")[1] for line in as_markdown().splitlines() if line.startswith("| `")} == {
        *METRICS
    }
