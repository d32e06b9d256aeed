"""`varangian.flower.Robust` around strategies of Flower, with clients that reply badly."""

import io
import json
import math

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed (pip install 'varangian[flower]')")

import torch
from flwr.app import Array, ArrayRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.exception import InconsistentMessageReplies
from tests.flower.grid import InProcess, content, identified

from varangian.aggregators import Aggregator, Krum, aggregator_from
from varangian.aggregators.numeric.shares import WeightCap
from varangian.flower import Robust

NODES = [*range(101, 108)]
BAD = 104
RULE = "nnm+trimmed_mean"


def model():
    rng = np.random.default_rng(0)
    return {
        "weight": rng.normal(size=(5, 3)).astype(np.float32),
        "bias": rng.normal(size=()).astype(np.float32),
        "batches": np.array(7, dtype=np.int64),
        "half": rng.normal(size=4).astype(np.float16),
    }


def trained(node, base, number):
    """What an honest node makes of a model."""
    rng = np.random.default_rng([node, number])
    out = {}
    for name, array in base.items():
        if array.dtype.kind == "i":
            out[name] = np.asarray(array + node % 3, dtype=array.dtype)
        else:
            out[name] = np.asarray(array + 0.1 + 0.05 * rng.normal(size=array.shape), dtype=array.dtype)
    return out


def given(message):
    return {name: array.numpy() for name, array in message.content["arrays"].items()}


def honest(node, message):
    number = message.content["config"]["server-round"]
    arrays = trained(node, given(message), number)
    metrics = {"loss": float(node), "num-examples": node, "parts": [1.0, float(node)]}
    if message.metadata.message_type == MessageType.EVALUATE:
        return RecordDict({"metrics": MetricRecord(metrics)})
    return content(arrays, metrics)


class Forged(Array):
    """An array with bytes of one's own."""

    def __init__(self, array, data):
        super().__init__(array)
        self.data = data


def header(shape, dtype):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def pickled():
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def with_array(name, array):
    def change(record):
        record["arrays"][name] = array if isinstance(array, Array) else Array(array)

    return change


def with_metrics(**values):
    def change(record):
        if "metrics" in record:
            record["metrics"] = MetricRecord(
                {**record["metrics"], **{k.replace("_", "-"): v for k, v in values.items()}}
            )

    return change


def without(name, inner=None):
    def change(record):
        if name not in record:
            return
        if inner is None:
            del record[name]
        else:
            del record[name][inner]

    return change


def emptied(record):
    for name in [*record]:
        del record[name]


def second(record):
    record["more"] = ArrayRecord({"weight": Array(np.zeros(3))})


WHITE = np.ones((5, 3), np.float32)
DROPPED = {
    "nan": with_array("weight", WHITE * np.float32("nan")),
    "infinite": with_array("weight", WHITE * np.float32("inf")),
    "extra array": with_array("spare\x1b[2J", WHITE),
    "missing array": without("arrays", "weight"),
    "wrong shape": with_array("weight", np.ones((3, 5), np.float32)),
    "wrong dtype": with_array("weight", WHITE.astype(np.float64)),
    "numbers that are objects": with_array("weight", Forged(WHITE, pickled())),
    "a header that promises much": with_array("weight", Forged(WHITE, header((1 << 50,), "<f4"))),
    "bytes that are cut": with_array("weight", Forged(WHITE, header((5, 3), "<f4") + b"1234")),
    "no header": with_array("weight", Forged(WHITE, b"\x93NUMPX")),
    "no bytes": with_array("weight", Forged(WHITE, b"")),
    "empty": emptied,
    "no arrays": without("arrays"),
    "two models": second,
}
KEPT = {
    "num-examples -1": with_metrics(num_examples=-1),
    "num-examples 0": with_metrics(num_examples=0),
    "num-examples nan": with_metrics(num_examples=math.nan),
    "num-examples 1e12": with_metrics(num_examples=1e12),
    "num-examples a list": with_metrics(num_examples=[1, 2]),
    "num-examples missing": without("metrics", "num-examples"),
    "evil metrics": with_metrics(loss=math.inf, parts=[math.nan] * 50, spare=1.0),
    "large metrics": with_metrics(loss=(1 << 64) - 1, parts=[1.7e308, -1.7e308]),
    "no metrics": without("metrics"),
    "two records of metrics": lambda record: record.__setitem__("more", MetricRecord({"loss": 1.0})),
}
ABSENT = ("error", "no reply")
KINDS = [*DROPPED, *KEPT, *ABSENT]


def replying(kind, bad=(BAD,)):
    """The grid's clients, of which some reply badly."""

    def reply(node, message):
        if node in bad and kind == "no reply":
            return None
        if node in bad and kind == "error":
            return Message(Error(1, "out of \x1b[31mmemory"), reply_to=message)
        record = honest(node, message)
        if node in bad and kind is not None:
            change = {**DROPPED, **KEPT}[kind]
            if "arrays" in record or kind in KEPT or kind == "empty":
                change(record)
        return Message(record, reply_to=message)

    return reply


class Own(flower.FedAvg):
    """A strategy of a user, who has to do with every metric."""

    def __init__(self, **options):
        super().__init__(**options, train_metrics_aggr_fn=self.own)
        self.seen = []

    def own(self, records, weighted_by):
        (record,) = records
        self.seen.append(dict(record["metrics"]))
        return MetricRecord({"loss": record["metrics"]["loss"]})

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return arrays, metrics


INNER = {
    "FedAvg": lambda: flower.FedAvg(),
    "FedAvgM": lambda: flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "FedAdam": lambda: flower.FedAdam(),
    "FedAdagrad": lambda: flower.FedAdagrad(),
    "FedYogi": lambda: flower.FedYogi(),
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1),
    "FedMedian": lambda: flower.FedMedian(),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(),
    "Krum": lambda: flower.Krum(),
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2),
    "of a user": lambda: Own(),
}
FLOATS = ("weight", "bias", "half")


def flat(arrays, base):
    return np.concatenate([(arrays[n].astype(np.float32) - base[n]).reshape(-1) for n in FLOATS])


def expected(base, number, without_node, faults):
    """The model of the rule, by Varangian's aggregator alone."""
    nodes = [node for node in NODES if node not in without_node]
    models = [trained(node, base, number) for node in nodes]
    rows = torch.tensor(np.stack([flat(one, base) for one in models]))
    update = aggregator_from(RULE, "aggregator", f=1)(rows, faults=faults).vector.numpy()
    out, at = {}, 0
    for name in FLOATS:
        size = base[name].size
        new = base[name] + update[at : at + size].reshape(base[name].shape)
        out[name] = np.asarray(new, dtype=base[name].dtype)
        at += size
    counts = sorted(int(one["batches"]) for one in models)
    out["batches"] = np.array(counts[(len(counts) - 1) // 2], dtype=np.int64)
    return out


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("kind", KINDS)
def test_no_reply_ends_a_run_and_the_model_is_that_of_the_rule(kind, inner):
    records = []
    robust = Robust(INNER[inner](), RULE, f=1, on_round=records.append)
    result = robust.start(InProcess(NODES, replying(kind)), initial(), 2)
    gone = [BAD] if kind in (*DROPPED, *ABSENT) else []
    assert [record.round for record in records] == [1, 2]
    for record in records:
        assert record.error is None
        assert [*record.dropped] == ([str(BAD)] if kind in DROPPED else [])
        assert [*record.absent] == ([str(BAD)] if kind in ABSENT else [])
        assert record.clients == tuple(str(node) for node in NODES if node not in gone)
    assert robust.faults[str(BAD)] == (2 if kind in DROPPED else 0)

    identified()
    twin, base = INNER[inner](), model()
    for number in (1, 2):
        grid = InProcess(NODES, replying(None))
        [*twin.configure_train(number, ArrayRecord(array_dict=arrays_of(base)), config(), grid)]
        one = expected(base, number, gone, int(kind in DROPPED))
        message = Message(content(one, {"num-examples": 1, "loss": 1.0}), 0, MessageType.TRAIN)
        answer = {k: a.numpy() for k, a in twin.aggregate_train(number, [message])[0].items()}
        base = {k: answer[k].astype(base[k].dtype) if k in FLOATS else one[k] for k in base}
    found = {name: array.numpy() for name, array in result.arrays.items()}
    assert {*found} == {*base}
    for name, array in base.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        close = 2e-3 if name == "half" else 1e-6
        np.testing.assert_allclose(found[name], array, rtol=close, atol=close)
    for metrics in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp):
        assert {*metrics} == {1, 2}
        assert NODES[0] <= metrics[2]["loss"] <= NODES[-1]
        assert {*metrics[2]} <= {"loss", "parts"}


def config():
    from flwr.app import ConfigRecord

    return ConfigRecord()


def arrays_of(arrays):
    return {name: Array(array) for name, array in arrays.items()}


def initial():
    return ArrayRecord(array_dict=arrays_of(model()))


@pytest.mark.parametrize("kind", ["extra array", "num-examples missing"])
def test_such_a_reply_does_end_a_run_of_the_strategy_alone(kind):
    with pytest.raises(InconsistentMessageReplies):
        flower.FedAvg().start(InProcess(NODES, replying(kind)), initial(), 1)


def test_more_bad_replies_than_f_are_a_round_without_an_update():
    records = []
    robust = Robust(flower.FedAvg(), RULE, f=1, on_round=records.append)
    result = robust.start(InProcess(NODES, replying("nan", bad=(101, 103))), initial(), 2)
    assert [record.clients for record in records] == [(), ()]
    assert {*records[0].dropped} == {"101", "103"}
    assert "only f = 1" in records[0].error
    np.testing.assert_array_equal(result.arrays["weight"].numpy(), model()["weight"])


def test_clients_that_are_silent_spend_none_of_the_f():
    """Of 7 clients 4 are absent, and 3 are the fewest for f = 1: one more is too many."""
    records = []
    robust = Robust(flower.FedAvg(), RULE, f=1, on_round=records.append)
    robust.start(InProcess(NODES, replying("no reply", bad=NODES[:4])), initial(), 1)
    robust.start(InProcess(NODES, replying("no reply", bad=NODES[:5])), initial(), 1)
    assert records[0].error is None
    assert len(records[0].absent) == 4
    assert "n is 2" in records[1].error


def test_nobody_replies():
    robust = Robust(flower.FedAdam(), RULE, f=1)
    result = robust.start(InProcess(NODES, replying("no reply", bad=NODES)), initial(), 1)
    assert robust.last.error
    np.testing.assert_array_equal(result.arrays["weight"].numpy(), model()["weight"])


def test_an_attacker_has_no_influence_by_its_numbers():
    """Far away, and with all examples of the world."""

    def reply(node, message):
        record = honest(node, message)
        if node == BAD and "arrays" in record:
            record["arrays"]["weight"] = Array(WHITE * 1e6)
            record["metrics"]["num-examples"] = 10**12
        return Message(record, reply_to=message)

    robust = Robust(flower.FedAvg(), "krum", f=1)
    result = robust.start(InProcess(NODES, reply), initial(), 3)
    assert np.abs(result.arrays["weight"].numpy()).max() < 10
    assert robust.last.weights[str(BAD)] == 0
    assert robust.last.effective == pytest.approx(1)


@pytest.mark.parametrize("claim", [10**18, -1, math.nan, [1.0], 1 << 63])
def test_claimed_sizes_weigh_and_are_capped(claim):
    sizes = {node: 10 * (node - 100) for node in NODES}

    def reply(node, message):
        record = honest(node, message)
        if "arrays" in record:
            record["metrics"]["num-examples"] = claim if node == BAD else sizes[node]
        return Message(record, reply_to=message)

    robust = Robust(flower.FedAvg(), "geometric_median", f=1, weights="num-examples", weights_cap=0.3)
    result = robust.start(InProcess(NODES, reply), initial(), 1)
    claims = [
        claim if isinstance(claim, int) and claim > 0 else 10,
        *(sizes[node] for node in NODES if node != BAD),
    ]
    capped = WeightCap(alpha_star=0.3).capped([float(one) for one in claims], 1)
    weights = [
        capped[0] if node == BAD else capped[1 + [n for n in NODES if n != BAD].index(node)]
        for node in NODES
    ]
    rows = torch.tensor(np.stack([flat(trained(node, model(), 1), model()) for node in NODES]))
    update = aggregator_from("geometric_median", "aggregator", f=1)(rows, weights=weights).vector.numpy()
    found = {name: array.numpy() for name, array in result.arrays.items()}
    np.testing.assert_allclose(flat(found, model())[:16], update[:16], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="weights_cap: should be above 0"):
        Robust(flower.FedAvg(), weights="num-examples", weights_cap=0.5)


def test_a_second_reply_and_one_of_nobody_who_was_asked_are_ignored():
    def reply(node, message):
        return Message(honest(node, message), reply_to=message)

    class Twice(InProcess):
        def send_and_receive(self, messages, *, timeout=None):
            messages = [*messages]
            replies = super().send_and_receive(messages)
            again = [Message(honest(node, messages[0]), reply_to=messages[0]) for node in (900, 901)]
            stranger = self.create_message(RecordDict(), MessageType.TRAIN, 5, "")
            return [*replies, *again, *replies, Message(RecordDict(), reply_to=stranger)]

    plain, twice = (Robust(flower.FedAvg(), RULE, f=1) for _ in range(2))
    plain.start(InProcess(NODES, reply), initial(), 1)
    twice.start(Twice(NODES, reply), initial(), 1)
    assert twice.last.line() == plain.last.line()


def test_the_order_of_replies_has_no_influence():
    class Backwards(InProcess):
        def send_and_receive(self, messages, *, timeout=None):
            return super().send_and_receive(messages)[::-1]

    arrays = []
    for kind in (InProcess, Backwards):
        robust = Robust(flower.FedAvg(), "bucketing+nnm+trimmed_mean", f=1)
        arrays.append(robust.start(kind(NODES, replying("nan")), initial(), 2).arrays)
    np.testing.assert_array_equal(arrays[0]["weight"].numpy(), arrays[1]["weight"].numpy())


@pytest.mark.parametrize("inner", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi"])
@pytest.mark.parametrize("rule", [RULE, "bucketing+centered_clipping"])
def test_a_run_that_goes_on_has_the_same_bits(inner, rule, tmp_path):
    grid = InProcess(NODES, replying("nan"))
    numbers = []

    def evaluate(number, arrays):
        numbers.append(number)
        return MetricRecord({"number": number})

    whole = Robust(INNER[inner](), rule, f=1)
    result = whole.start(grid, initial(), 5, evaluate_fn=evaluate)
    begun = Robust(INNER[inner](), rule, f=1)
    begun.start(grid, initial(), 3)
    torch.save(begun.state_dict(), tmp_path / "state.pt")

    again = Robust(INNER[inner](), rule, f=1)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.round == 3
    numbers.clear()
    later = again.start(grid, again.arrays, 5, first_round=again.round + 1, evaluate_fn=evaluate)
    assert numbers == [3, 4, 5]
    assert {*later.train_metrics_clientapp} == {4, 5}
    assert {*later.evaluate_metrics_serverapp} == {3, 4, 5}
    for name in model():
        assert later.arrays[name].data == result.arrays[name].data
    assert again.faults == whole.faults


def test_the_log_has_a_line_for_each_round(tmp_path):
    Robust(flower.FedAvg(), "krum", f=1, log=tmp_path / "rounds.jsonl").start(
        InProcess(NODES, replying("extra array")), initial(), 2
    )
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert lines[0]["dropped"][str(BAD)].startswith("has an array 'spare\\x1b[2J'")
    assert sum(lines[0]["weights"].values()) == pytest.approx(1)


def test_text_of_clients_is_escaped():
    robust = Robust(flower.FedAvg(), RULE, f=1)
    robust.start(InProcess(NODES, replying("error")), initial(), 1)
    assert str(robust.last).isprintable()
    assert "memory" in str(robust.last)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"inner": flower.QFedAvg(client_learning_rate=0.1)}, "weighs every client by its loss"),
        ({"inner": flower.Bulyan()}, "the rule `bulyan`"),
        ({"inner": flower.FedXgbBagging()}, "trees"),
        ({"inner": "fedavg"}, "Found str"),
        ({"aggregator": "fltrust"}, "server trusts"),
        ({"aggregator": "trimed_mean"}, "trimmed_mean"),
    ],
)
def test_what_cannot_be_is_said_at_once(arguments, words):
    with pytest.raises(ValueError, match=words):
        Robust(**{"inner": flower.FedAvg(), **arguments})


def test_the_strategies_of_differential_privacy_stand_outside():
    inside = flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 0.1, 10.0, 7)
    with pytest.raises(ValueError, match="around Robust"):
        Robust(inside)
    robust = Robust(flower.FedAvg(), Aggregator(Krum(f=1)))
    floats = {name: array for name, array in model().items() if array.dtype == np.float32}
    outside = flower.DifferentialPrivacyServerSideFixedClipping(robust, 1e-6, 10.0, 7)
    outside.start(InProcess(NODES, replying(None)), ArrayRecord(array_dict=arrays_of(floats)), 1)
    assert robust.last.error is None


def test_too_few_clients_for_the_rule_are_an_error_before_the_first_round():
    with pytest.raises(ValueError, match="at least 3 clients"):
        Robust(flower.FedAvg(), RULE, f=1).start(InProcess(NODES[:2], replying(None)), initial(), 1)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3, complex), "complex128"),
        (np.zeros(3, int), "floating point"),
        (np.zeros(3, ">f4"), ">f4"),
    ],
)
def test_a_model_that_cannot_be_aggregated_is_an_error(array, words):
    with pytest.raises(ValueError, match=words):
        Robust(flower.FedAvg()).start(
            InProcess(NODES, replying(None)), ArrayRecord(array_dict=arrays_of({"a": array})), 1
        )


def test_a_state_of_something_else_is_refused():
    robust = Robust(flower.FedAvg())
    robust.start(InProcess(NODES, replying(None)), initial(), 1)
    state = robust.state_dict()
    with pytest.raises(ValueError, match="It lacks"):
        Robust(flower.FedAvg()).load_state_dict({})
    with pytest.raises(ValueError, match="seed: should be 0"):
        Robust(flower.FedAvg(), seed=1).load_state_dict(state)
    adam = Robust(flower.FedAdam())
    adam.start(InProcess(NODES, replying(None)), initial(), 1)
    with pytest.raises(ValueError, match="with the attribute"):
        Robust(flower.FedAvg()).load_state_dict(adam.state_dict())
