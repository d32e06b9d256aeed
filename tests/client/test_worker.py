"""A loop of the user's own against a server, over real sockets."""

import concurrent.futures
import logging
import threading

import pytest
import torch
from tests.client.rig import flat_gradient, model, serving
from tests.extent import patience
from torch import nn

import varangian
from varangian import ClientError, Outcome
from varangian.aggregators.rules.krum import Krum
from varangian.client import session
from varangian.client.exchange import Declined
from varangian.protos.contract import Terms
from varangian.protos.payloads.encoding import Encoding, rounding_seed
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.worker.transport.client import Client
from varangian.worker.transport.results import Receipt

X, Y = torch.arange(12.0).reshape(4, 3) / 12, torch.arange(8.0).reshape(4, 2) / 8


def loss_of(module, shift=0.0):
    return (module(X) - Y - shift).square().mean()


def test_the_loop_of_the_readme():
    module, steps = model(), []
    with serving(module) as rig:
        with rig.connect(module) as worker:
            while worker.pull():
                loss_of(module).backward()
                steps.append((worker.round, flat_gradient(module)))
                assert worker.push()
        assert worker.reason == "all 3 rounds are done"
    assert [round for round, _ in steps] == [0, 1, 2]
    expected = torch.zeros(worker.layout.numel)
    for round, gradient in steps:
        assert torch.equal(rig.rows[round]["w00"], gradient)
        expected -= gradient
    assert torch.equal(rig.learner.parameters, expected)


def test_pull_sets_the_parameters_and_clears_gradients():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        loss_of(module).backward()  # of parameters that are not those of the server
        assert worker.pull()
        assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), rig.learner.parameters)
        assert torch.equal(worker.parameters, rig.learner.parameters)
        assert all(p.grad is None for p in module.parameters())
        loss_of(module).backward()
        worker.push()
        kept = flat_gradient(module)
        assert worker.pull(zero_grad=False)
        assert torch.equal(flat_gradient(module), kept)


def test_an_outcome_has_the_weight_of_the_last_round_that_was_aggregated():
    module = model()
    with serving(module, "w00", "w01", "w02", rule=Krum(f=0)) as rig, threads(3) as pool:
        outcomes = list(pool.map(lambda name: worked(rig, name), rig.names))
    assert [one.weight for first, _, _ in outcomes for one in [first]] == [None] * 3
    for place in (1, 2):
        weights = {name: outcomes[i][place].weight for i, name in enumerate(rig.names)}
        assert weights == rig.records[place - 1].weights
        assert {outcomes[i][place].weight_round for i in range(3)} == {place - 1}
    assert sorted(rig.records[0].weights.values()) == [0, 0, 1]


def threads(count):
    return concurrent.futures.ThreadPoolExecutor(count)


def worked(rig, name):
    module, outcomes = model(), []
    with rig.connect(module, name) as worker:
        while worker.pull():
            loss_of(module, shift=int(name[1:])).backward()
            outcomes.append(worker.push())
    return outcomes


def test_a_weight_travels_only_where_there_is_one():
    assert Receipt(True).weight is None
    assert (Outcome(True, 3).weight, bool(Outcome(False, 3)), bool(Outcome(True, 3))) == (None, False, True)


def test_gradients_of_several_batches_add_up_and_can_be_divided():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        worker.pull()
        loss_of(module).backward()
        loss_of(module, 1.0).backward()
        total = flat_gradient(module)
        worker.push(divide=2)
        worker.pull()
        with pytest.raises(ClientError, match=r"`divide` should be a finite number above 0. Found 0"):
            worker.push(divide=0)
    assert torch.equal(rig.rows[0]["w00"], total / 2)


def test_a_vector_of_the_users_own():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        d = worker.layout.numel
        worker.pull()
        for vector, says in [
            (torch.zeros(d + 1), rf"should have the shape \({d},\). Found \({d + 1},\)"),
            (torch.zeros(d, 1), "should have the shape"),
            (torch.zeros(d, dtype=torch.int64), "floating-point type. Found torch.int64"),
            (torch.zeros(d, dtype=torch.complex64), "floating-point type. Found torch.complex64"),
            (torch.full((d,), torch.nan), "finite numbers"),
            (torch.full((d,), 3.4e38), "too large"),
            ([0.0] * d, "should be a torch.Tensor. Found list"),
        ]:
            with pytest.raises(ClientError, match=says):
                worker.push(vector)
        assert worker.push(torch.arange(d, dtype=torch.bfloat16))
        worker.pull()
    assert torch.equal(rig.rows[0]["w00"], torch.arange(float(d)))


def test_one_push_for_each_pull():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        with pytest.raises(ClientError, match=r"push\(\) answers one pull\(\). Found none before it"):
            worker.push()
        with pytest.raises(ClientError, match="call pull"):
            _ = worker.parameters
        worker.pull()
        with pytest.raises(ClientError, match="Found none: call backward"):
            worker.push()
        loss_of(module).backward()
        worker.push()
        with pytest.raises(ClientError, match="answers one pull"):
            worker.push()
        with pytest.raises(ClientError, match=r"decline\(\) answers one pull"):
            worker.decline("too late")
        while worker.pull():
            loss_of(module).backward()
            worker.push()
        assert not worker.pull()
        with pytest.raises(
            ClientError, match=r"of a run that goes on. Found its end: all 3 rounds are done"
        ):
            worker.push()
    with pytest.raises(ClientError, match="Worker w00 is closed"):
        worker.pull()
    worker.close()


def test_a_round_can_be_declined_and_one_that_was_left_is_declined():
    module = model()
    with (
        serving(module, "w00", "w01", quorum=1) as rig,
        rig.connect(model(), "w01") as other,
        rig.connect(module) as worker,
    ):
        for _ in range(3):
            assert worker.pull()
            assert other.pull()
            if worker.round == 0:
                with pytest.raises(ClientError, match=r"`reason` should be a sentence.*Found ValueError"):
                    worker.decline(ValueError("no batch"))
                worker.decline("no batch today")
            other.push(torch.zeros(other.layout.numel))
    declined = [record.declined for record in rig.records]
    assert declined[:2] == [
        {"w00": "no batch today"},
        {"w00": "Nothing was pushed before the next pull()."},
    ]


def test_gradients_that_are_not_finite_are_declined(caplog):
    module = model()
    with serving(module, quorum=1, deadline=0.1, shortfall="skip") as rig, rig.connect(module) as worker:
        worker.pull()
        (loss_of(module) * torch.nan).backward()
        outcome = worker.push()
        assert (outcome.accepted, outcome.code, outcome.round) == (False, "DECLINED", 0)
        assert "NaN or infinity" in outcome.reason
        worker.pull()
    assert rig.records[0].declined["w00"] == outcome.reason
    assert rig.rows == {}


def test_rounds_that_are_declined_are_said_at_first_and_then_each_minute(caplog):
    now = 0.0
    declined = Declined("w00", lambda: now)
    for round in range(100):
        now = 10.0 * round
        declined.decline(round, "no\ndata")
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 17
    assert said[:2] == [
        r"w00: round 0 is declined: no\ndata",
        r"w00: round 6 is declined, as are the 6 before it: no\ndata",
    ]
    declined.push()
    now += 60
    declined.decline(101, "overflow")
    assert caplog.messages[-1] == "w00: round 101 is declined: overflow"


def test_a_loop_that_only_pulls_and_one_that_only_declines_are_in_the_log(caplog):
    module = model()
    with serving(module, shortfall="skip") as rig:
        for name in ("pulls", "declines"):
            with rig.connect(module) as worker:
                worker.pull()
                if name == "declines":
                    worker.decline("no data today")
                worker.pull()
    said = [one for one in caplog.messages if "is declined" in one]
    assert said == [
        "w00: round 0 is declined: Nothing was pushed before the next pull().",
        "w00: round 1 is declined: no data today",
    ]


def test_a_vector_for_a_round_that_is_over_is_not_accepted_and_says_why(caplog):
    terms = Terms(momentum=0.0, deadline=1e-9)
    module = model()
    with (
        serving(module, "w00", "w01", quorum=1, rounds=4, deadline=1e-3, terms=terms) as rig,
        rig.connect(module) as worker,
        rig.connect(model(), "w01") as other,
    ):
        assert worker.pull()
        assert other.pull()
        other.push(torch.zeros(other.layout.numel))
        assert other.pull()
        loss_of(module).backward()
        outcome = worker.push()
        assert (outcome.accepted, outcome.code, outcome.round) == (False, "STALE", 0)
        assert "and a round ends after 1e-09 s" in outcome.reason
        assert worker.pull()
        loss_of(module).backward()
        again = worker.push()
        assert again
        assert "The computation took" in again.reason
    said = [one for one in caplog.records if one.getMessage().startswith("w00: The computation took")]
    assert [one.levelno for one in said] == [logging.WARNING]


def test_pushes_overlap_with_what_comes_next():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        vector = torch.ones(worker.layout.numel)
        worker.pull()
        future = worker.push_async(vector)
        vector.zero_()  # it was copied
        assert worker.pull()
        assert future.done()
        assert future.result() == Outcome(True, 0)
        loss_of(module).backward()
        last = worker.push_async()
        sent = flat_gradient(module)
        module.zero_grad()
    assert last.result(patience(5)).accepted
    assert torch.equal(rig.rows[0]["w00"], torch.ones(worker.layout.numel))
    assert torch.equal(rig.rows[1]["w00"], sent)


def test_a_parameter_without_a_gradient_is_said_once_and_has_zeros(caplog):
    module = nn.ModuleDict({"used": nn.Linear(3, 2), "spare": nn.Linear(3, 2)})
    with serving(module) as rig, rig.connect(module) as worker:
        while worker.pull():
            loss_of(module["used"]).backward()
            worker.push()
    assert all(torch.count_nonzero(row["w00"][8:]) == 0 for row in rig.rows.values())
    said = [one.getMessage() for one in caplog.records if "no gradient for" in one.getMessage()]
    (sentence,) = said
    assert sentence.startswith("w00: no gradient for spare.weight, spare.bias; zeros are sent")


@pytest.mark.parametrize("secure", [False, True])
def test_vectors_beside_the_calls(secure, bundles):
    module = nn.Linear(300, 200)
    security = Security(bundles / "ours" / "server") if secure else None
    proof = {"certs": bundles / "ours" / "w00"} if secure else {}
    with serving(module, security=security) as rig, rig.connect(module, **proof) as worker:
        vector = torch.randn(worker.layout.numel)
        worker.pull()
        assert worker.push(vector)
        assert worker.pull()
        assert torch.equal(worker.parameters, -vector)
        assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), -vector)
        assert worker.push_async(vector).result(patience(10))
        worker.pull()
    assert torch.equal(rig.rows[1]["w00"], vector)


def test_vectors_are_rounded_as_the_server_asks():
    module = nn.Linear(300, 200)
    with serving(module, dtype="int8") as rig, rig.connect(module) as worker:
        vector = torch.randn(worker.layout.numel)
        worker.pull()
        assert worker.push(vector)
        worker.pull()
        encoding = Encoding(len(vector), "int8")
        payload = encoding.encode(vector, rounding_seed("w00", 0))
        assert torch.equal(rig.rows[0]["w00"], encoding.decode(payload))
        assert torch.equal(worker.parameters, 0.0 - encoding.decode(payload))


def test_a_worker_that_computes_for_long_calls_now_and_then(monkeypatch):
    joined, enough, join = [], threading.Event(), Client.join

    async def counted(self):
        joined.append(self.name)
        if len(joined) >= 4:
            enough.set()
        return await join(self)

    monkeypatch.setattr(Client, "join", counted)
    monkeypatch.setattr(session, "SIGN_OF_LIFE", 0.01)
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        worker.pull()
        assert enough.wait(patience(10))
        assert worker.push(torch.zeros(worker.layout.numel))
        worker.pull()


def test_what_a_sign_of_life_is_told_is_raised_by_the_next_call(monkeypatch):
    refused = threading.Event()

    async def refuse(self):
        refused.set()
        raise ClientError("This worker was expelled.")

    module = model()
    monkeypatch.setattr(session, "SIGN_OF_LIFE", 0.01)
    with serving(module) as rig, rig.connect(module) as worker:
        worker.pull()
        monkeypatch.setattr(Client, "join", refuse)
        assert refused.wait(patience(10))
        for _ in range(2):
            with pytest.raises(ClientError, match="This worker was expelled"):
                worker.pull()


def test_a_worker_that_computes_while_the_run_ends_hears_of_it(monkeypatch):
    heard, join = threading.Event(), Client.join

    async def noted(self):
        round = await join(self)
        if self.name == "w00" and self._over is not None:
            heard.set()
        return round

    monkeypatch.setattr(Client, "join", noted)
    monkeypatch.setattr(session, "SIGN_OF_LIFE", 0.01)
    module = model()
    limits = Limits(idle=20.0, status=0.0, grace=patience(20), restart=patience(20))
    with serving(module, "w00", "w01", quorum=1, rounds=1, deadline=0.05, limits=limits) as rig:
        worker = rig.connect(module, patience=patience(20))
        zeros = torch.zeros(worker.layout.numel)
        assert worker.pull()
        with rig.connect(model(), "w01") as other:
            assert other.pull()
            assert other.push(zeros)
            assert not other.pull()
        assert heard.wait(patience(10))  # before the server is stopped
    # The server has ended: it has told this worker, too.
    outcome = worker.push(zeros)
    assert (outcome.accepted, outcome.code) == (False, "FINISHED")
    assert not worker.pull()
    assert worker.reason == "all 1 rounds are done"
    worker.close()


def test_a_server_that_is_gone_is_an_error_after_some_patience():
    module = model()
    with serving(module) as rig:
        worker = rig.connect(module, patience=0.05)
        worker.pull()
    for failed in ("decline round 0", "pull the parameters"):
        with pytest.raises(ClientError, match=f"w00 could not {failed} at {rig.address} after"):
            worker.pull()
    worker.close()
    with pytest.raises(ClientError, match=r"`patience` should be a number of seconds above 0. Found 0"):
        rig.connect(module, patience=0)


def test_names_of_the_package():
    assert {"connect", "connect_async", "Worker", "AsyncWorker", "Outcome", "ClientError"} <= set(
        dir(varangian)
    )
