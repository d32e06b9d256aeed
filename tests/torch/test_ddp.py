"""`robust`: DistributedDataParallel with a rule in the place of its average, on real processes."""

import json
import math
import subprocess
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from tests.torch.ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from varangian.aggregators import AggregationError, Aggregator, Krum, aggregator_from
from varangian.aggregators.base import RULES, is_columnwise, is_selecting
from varangian.torch import robust
from varangian.torch.reduction import Reduction
from varangian.torch.steps import Step


class Net(nn.Module):
    """Odd sizes, a parameter of one number, and one that is not always used."""

    def __init__(self, dtype=torch.float32, mixed=False):
        super().__init__()
        self.first = nn.Linear(7, 301, dtype=dtype)
        self.second = nn.Linear(301, 13, dtype=torch.float64 if mixed else dtype)
        self.scale = nn.Parameter(torch.ones(1, dtype=dtype))
        self.spare = nn.Linear(3, 2, dtype=dtype)

    def forward(self, x, spare=False):
        hidden = torch.tanh(self.first(x)) * self.scale
        out = self.second(hidden.to(self.second.weight.dtype))
        return out.float().square().mean() + (self.spare(x[:, :3]).float().sum() if spare else 0)


def batch(rank, step, dtype=torch.float32):
    rng = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(5, 7, generator=rng).to(dtype)


def flat(grads):
    return torch.cat([grad.flatten() for grad in grads])


def own_gradient(model, rank, step, bad, spare, dtype):
    """The loss of a rank; a bad one has another factor, so also its gradient."""
    return model(batch(rank, step, dtype), spare) * bad.get(rank, 1.0)


def mean_cosines(rows):
    """Of each row with the others that are finite."""
    rows = torch.stack(rows).double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    cosines = rows @ rows.T
    return ((cosines.nansum(1) - 1) / (cosines.diagonal().isfinite().sum() - 1)).where(
        cosines.diagonal().isfinite(), torch.nan
    )


def compare(rank, spec, f, options):
    """Steps of a model with the hook, and of an identical one whose gradients are gathered and aggregated.

    Returns the record of each step and how far gradients and parameters of both are apart.
    """
    import torch.distributed as dist

    n, dtype = dist.get_world_size(), options.get("dtype", torch.float32)
    bad, steps = options.get("bad", {}), options.get("steps", 3)
    mixed, spare = options.get("mixed", False), options.get("spare", False)
    torch.manual_seed(7)
    plain, model = Net(dtype, mixed), Net(dtype, mixed)
    model.load_state_dict(plain.state_dict())
    wrapped = DistributedDataParallel(model, **options.get("ddp", {}))
    records = []
    weights = options.get("weights")
    beta, momentum = options.get("momentum", 0.0), 0.0
    reduction = robust(
        wrapped,
        spec,
        f,
        seed=3,
        on_step=records.append,
        on_error="nan",
        weights=weights,
        momentum=beta,
    )
    aggregator, last, apart = reduction.aggregator, None, []
    learn = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (plain, model)]
    for step in range(steps):
        for each in learn:
            each.zero_grad(set_to_none=step % 2 == 0)
        for accumulated in (*([1] if options.get("no_sync") else []), 0):
            place = 10 * step + accumulated
            own_gradient(plain, rank, place, bad, spare, dtype).backward()
            with wrapped.no_sync() if accumulated else nullcontext():
                own_gradient(wrapped, rank, place, bad, spare, dtype).backward()
        used = [p for p in plain.parameters() if p.grad is not None]
        wide = torch.float64 if mixed else dtype
        mine = flat([p.grad.to(wide) for p in used])
        if beta:
            mine = momentum = beta * momentum + (1 - beta) * mine
        rows = [torch.empty_like(mine) for _ in range(n)]
        dist.all_gather(rows, mine)
        whole = aggregator(torch.stack(rows), last, reduction.generator(step), weights=weights)
        last = whole.vector
        for p, part in zip(used, last.split([p.numel() for p in used]), strict=True):
            p.grad = part.clone().view_as(p).to(p.dtype)
        pairs = zip(model.parameters(), plain.parameters(), strict=True)
        found = flat([p.grad.to(wide) for p, other in pairs if other.grad is not None])
        scale = float(last.abs().max())
        apart.append(
            {
                "equal": torch.equal(found, last.to(found.dtype)),
                "apart": float((found - last).abs().max()) / scale,
                "weights": None if whole.weights is None else tuple(whole.weights.tolist()),
                "dropped": whole.dropped,
                "spread": whole.spread,
                "agreement": mean_cosines(rows),
            }
        )
        for each in learn:
            each.step()
    parameters = flat([p.detach().double() for p in model.parameters()])
    return records, apart, parameters


def check(answers, aggregator, tolerance=1e-6):
    columnwise = is_columnwise(aggregator.rule) and not aggregator.mix and not is_selecting(aggregator.rule)
    records = answers[0][0]
    assert [record.step for record in records] == [*range(len(answers[0][1]))]
    for given, apart, parameters in answers:
        assert given == records or str(given) == str(records)  # NaN is not equal to itself
        assert torch.equal(parameters, answers[0][2])
        for record, one in zip(given, apart, strict=True):
            assert one["equal"] if columnwise else one["apart"] < tolerance, one
            assert record.dropped == one["dropped"]
            assert (record.weights is None) == (one["weights"] is None)
            if record.weights is not None:
                assert record.weights == pytest.approx(one["weights"], rel=1e-4, abs=1e-4)
            if len(answers) > 1:
                agreement = pytest.approx(one["agreement"].tolist(), rel=1e-3, abs=1e-4, nan_ok=True)
                assert record.agreement == agreement
            if record.spread is not None and one["spread"] is not None:
                assert record.spread == pytest.approx(one["spread"], rel=1e-4)


def several(rank, cases):
    return [compare(rank, *case) for case in cases]


QUICK = [
    ("nnm+trimmed_mean", 1, {"bad": {1: -1000.0}}),
    ("median", 1, {"bad": {2: float("nan")}}),
    ("centered_clipping", 1, {"ddp": {"gradient_as_bucket_view": True}, "no_sync": True}),
    ("bucketing+mean", 0, {"mixed": True, "spare": True}),
    ("arc+caf", 1, {"bad": {0: float("inf")}, "ddp": {"find_unused_parameters": True}}),
    ("trimmed_mean", 1, {"bad": {1: -1000.0}, "weights": (3, 4, 2)}),
    ("arc+caf", 1, {"bad": {0: float("inf")}, "weights": (2, 2, 3)}),
    ("arc+caf", 1, {"bad": {1: -1000.0}, "momentum": 0.9}),
]
"""One case for each thing that may go wrong by itself."""
SMALL = {"bucket_cap_mb": 0.005}
"""Several buckets for the small model."""


def with_small_buckets(case):
    spec, f, options = case
    unused = {} if options.get("spare") else {"find_unused_parameters": True}
    return spec, f, {**options, "ddp": {**SMALL, **unused, **options.get("ddp", {})}}


def with_one_bucket(case):
    spec, f, options = case
    return spec, f, {**options, "ddp": {"find_unused_parameters": True}}


@pytest.mark.slow
def test_the_update_is_that_of_the_gathered_gradients(tmp_path):
    cases = [with_small_buckets(case) for case in QUICK]
    answers = on_ranks(3, several, tmp_path, cases)
    for place, (spec, f, _) in enumerate(cases):
        check([answer[place] for answer in answers], aggregator_from(spec, "aggregator", f=f))
    dropped = [[record.dropped for record in answers[0][place][0]] for place in range(len(cases))]
    assert dropped == [[()] * 3, [(2,)] * 3, [()] * 3, [()] * 3, [(0,)] * 3, [()] * 3, [(0,)] * 3, [()] * 3]


SPECS = [
    *sorted({*RULES} - {"fltrust"}),
    *(
        f"{mixing}+{rule}"
        for mixing in ("arc", "bucketing", "nnm", "synthetic")
        for rule in ("mean", "median")
    ),
    "nnm+trimmed_mean",
    "arc+caf",
    "bucketing+geometric_median",
]
"""All that works on shards."""
HONEST = {"mean", "upgrad", "bucketing+mean", "synthetic+mean", "mgda", "cagrad"}
"""Not robust: with a bad rank there is nothing to compare but that."""


def most_faults(spec, n):
    """The largest f that a rule takes; None where it takes no n."""
    for f in range((n - 1) // 2, -1, -1):
        if aggregator_from(spec, "aggregator", f=f).requires(n, f) is None:
            return f
    return None


def every_rule(n, dtype):
    """Cases with several small buckets, and with one; every rule has both."""
    for spec in SPECS:
        f = most_faults(spec, n)
        if f is not None:
            bad = {} if f == 0 or spec in HONEST else {1: -50.0}
            case = (spec, f, {"dtype": dtype, "bad": bad})
            yield with_small_buckets(case)
            yield with_one_bucket(case)


@pytest.mark.slow
@pytest.mark.exhaustive  # the quick test above has one case for each thing that may go wrong
@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_update_of_every_rule_is_that_of_the_gathered_gradients(n, dtype, tmp_path):
    cases = [*every_rule(n, dtype)]
    assert len(cases) > 40
    answers = on_ranks(n, several, tmp_path, cases)
    for place, (spec, f, _) in enumerate(cases):
        try:
            check([answer[place] for answer in answers], aggregator_from(spec, "aggregator", f=f), 3e-6)
        except AssertionError as error:
            raise AssertionError(f"{spec}, f = {f}, case {place}: {error}") from error


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("n", [1, 5])
def test_krum_bulyan_and_half_precision(n, tmp_path):
    cases = [
        with_small_buckets(("mean", 0, {})),
        with_small_buckets(("median", 0, {"dtype": torch.bfloat16})),
    ]
    if n == 5:
        cases += [with_small_buckets(("multi_krum", 1, {"bad": {3: -1000.0}}))]
        cases += [with_small_buckets(("median", 2, {"bad": {0: float("nan"), 4: float("inf")}}))]
    answers = on_ranks(n, several, tmp_path, cases)
    for place, (spec, f, _) in enumerate(cases):
        check([answer[place] for answer in answers], aggregator_from(spec, "aggregator", f=f))


@pytest.mark.slow
@pytest.mark.exhaustive  # the quick test has the other ways of DDP
@pytest.mark.parametrize("view", [False, True])
def test_a_static_graph(view, tmp_path):
    ddp = {**SMALL, "static_graph": True, "gradient_as_bucket_view": view}
    cases = [("arc+caf", 1, {"ddp": ddp, "spare": True, "bad": {1: -100.0}, "steps": 4})]
    cases += [("monna", 1, {"ddp": ddp, "bad": {2: float("nan")}, "steps": 4})]  # with unused parameters
    answers = on_ranks(3, several, tmp_path, cases)
    for place, (spec, f, _) in enumerate(cases):
        check([answer[place] for answer in answers], aggregator_from(spec, "aggregator", f=f), 3e-6)


def compiled(rank):
    """Steps of a compiled model with the hook, and of the same one that is not compiled."""
    found = []
    for compile in (False, True):
        torch.manual_seed(7)
        model = Net()
        wrapped = DistributedDataParallel(model)  # dynamo takes no bucket that is smaller than the first
        robust(wrapped, "arc+caf", 1, on_suspect=print)
        called = torch.compile(wrapped, backend="aot_eager") if compile else wrapped
        for place in range(3):
            model.zero_grad()
            (called(batch(rank, place), True) * (-1000.0 if rank == 1 else 1.0)).backward()
        found.append(flat([p.grad for p in model.parameters()]))
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_compiled_model(tmp_path):
    assert max(on_ranks(3, compiled, tmp_path)) < 1e-5


def decides_by_bucket(rank, spec):
    """Steps with a decision for each bucket, and the rule on the gathered gradients of each."""
    import torch.distributed as dist

    from varangian.torch import robust_hook

    torch.manual_seed(7)
    plain, model = Net(), Net()
    model.load_state_dict(plain.state_dict())
    wrapped = DistributedDataParallel(model, bucket_cap_mb=0.005)
    records, buckets, apart = [], [], []
    reduction = Reduction(spec, 1, seed=3, per_bucket=True, on_step=records.append)

    def hook(state, bucket):
        buckets.append([*map(id, bucket.parameters())])
        return robust_hook(state, bucket)

    hook.__annotations__ = robust_hook.__annotations__
    wrapped.register_comm_hook(reduction, hook)
    pairs = {
        id(ours): (ours, theirs)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True)
    }
    last = {}
    for step in range(3):
        buckets.clear()
        for each in (plain, wrapped):
            each.zero_grad()
            own_gradient(each, rank, step, {1: -1000.0}, True, torch.float32).backward()
        for keys in buckets:
            mine = flat([pairs[key][1].grad for key in keys])
            rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(rows, mine)
            before = torch.cat([last[key] for key in keys]) if keys[0] in last else None
            whole = reduction.aggregator(torch.stack(rows), before, reduction.generator(step)).vector
            found = flat([pairs[key][0].grad for key in keys])
            apart.append(float((found - whole).abs().max() / whole.abs().max()))
            last |= dict(zip(keys, whole.split([pairs[key][0].numel() for key in keys]), strict=True))
    return apart, len(buckets), [(record.dropped, record.weights, sorted(record.far)) for record in records]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", ["nnm+trimmed_mean", "arc+caf", "centered_clipping"])
def test_a_decision_for_each_bucket_is_that_of_its_gathered_gradients(spec, tmp_path):
    answers = on_ranks(3, decides_by_bucket, tmp_path, spec)
    for apart, buckets, records in answers:
        assert buckets >= 2
        assert max(apart) < 3e-6
        assert str(records) == str(answers[0][2])
        assert all(far == [1] for _, _, far in records)
        assert all(weights is None or sum(weights) == pytest.approx(1) for _, weights, _ in records) or (
            spec == "centered_clipping"
        )


def lies(rank, lie, spec):
    """Steps with an audit in which rank 1 computes wrongly for others from the second step on."""
    torch.manual_seed(7)
    model = Net()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True, **SMALL)
    records, suspects, errors = [], [], []
    reduction = robust(wrapped, spec, 1, audit=0.5, on_step=records.append, on_suspect=suspects.append)
    if rank == 1 and lie:
        bend(lie, reduction)
    for place in range(8):
        model.zero_grad()
        try:
            own_gradient(wrapped, rank, place, {2: -1000.0}, False, torch.float32).backward()
        except AggregationError as error:
            errors.append(str(error))
    return [(r.step, r.accused, r.error) for r in records], {s.rank for s in suspects}, errors


def bend(lie, reduction):
    """Have this rank lie, from the second step on, in what it does for others."""
    import dataclasses

    from varangian.torch import reduction as module

    publish, update, sent = module.publish, reduction._update, reduction._sent

    def bent_publish(pieces, blocks, group, measure):
        def other(piece, rows, place):
            found = measure(piece, rows, place)
            return dataclasses.replace(found, products=found.products * 2)

        return publish(pieces, blocks, group, other if reduction._step else measure)

    def bent_update(group, settled, decision):
        class Other:
            distances, certain = decision.distances, decision.certain

            def apply(self, rows, reference):
                return decision.apply(rows, reference) * 2

        update(group, settled, Other() if reduction._step else decision)

    def bent_sent(group, buffer, parameters):
        piece = sent(group, buffer, parameters)
        if reduction._step:
            piece.arriving.wait()
            piece.own = piece.own * 2
        return piece

    if lie == "distances":
        module.publish = bent_publish
    elif lie == "update":
        reduction._update = bent_update
    elif lie == "gradient":
        reduction._sent = bent_sent


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", ["trimmed_mean", "nnm+trimmed_mean", "centered_clipping"])
@pytest.mark.parametrize("lie", ["", "distances", "update", "gradient"])
def test_an_audit_names_a_rank_that_computes_wrongly(lie, spec, tmp_path):
    words = {
        "distances": "measured other distances",
        "update": "computed another update",
        "gradient": "sent another gradient",
    }
    for records, suspects, errors in on_ranks(4, lies, tmp_path, lie, spec):
        assert len(records) == 8
        if not lie:
            assert all(error is None for _, _, error in records)
            assert suspects <= {2}  # whose own gradient is far from the others
            continue
        assert records[0][2] is None
        assert {accused for _, accused, _ in records[1:]} == {(1,)}
        assert all(f"rank 1 {words[lie]}" in error for error in errors)
        assert len(errors) == 7
        assert 1 in suspects


def fails_and_goes_on(rank, folder):
    """A step with more faults than declared, caught; sound steps; a state, and the same steps again."""
    torch.manual_seed(7)
    model = Net()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True, **SMALL)
    suspects, records = [], []
    reduction = robust(
        wrapped,
        "centered_clipping",
        1,
        on_step=records.append,
        log=folder / "steps.jsonl",
        momentum=0.5,
        suspect_after=2,
        on_suspect=suspects.append,
    )
    assert reduction.state_dict()["step"] == 0

    def step(place, bad):
        model.zero_grad()
        own_gradient(wrapped, rank, place, bad, False, torch.float32).backward()
        return flat([p.grad for p in model.parameters() if p.grad is not None])

    first = step(0, {})
    errors = []
    try:
        step(1, {0: float("nan"), 2: float("nan")})
    except AggregationError as error:
        errors.append(str(error))
    nothing = flat([p.grad for p in model.parameters() if p.grad is not None])
    state = reduction.state_dict()
    after = [step(2, {1: float("nan")}), step(3, {1: float("nan")})]
    told = [str(suspect) for suspect in suspects]
    reduction.load_state_dict(state)
    again = [step(2, {1: float("nan")}), step(3, {1: float("nan")})]
    return {
        "first": bool(first.isfinite().all()),
        "errors": errors,
        "nothing": bool(nothing.isnan().all()),
        "same": all(map(torch.equal, after, again)),
        "reference": {name: value.numel() for name, value in state["reference"].items()},
        "after": after,
        "suspects": told,
        "steps": [(record.step, record.dropped) for record in records],
    }


@pytest.mark.slow
def test_a_step_without_an_update_is_an_error_on_every_rank_and_training_goes_on(tmp_path):
    answers = on_ranks(3, fails_and_goes_on, tmp_path, tmp_path)
    for answer in answers:
        (error,) = answer["errors"]
        assert error.startswith("Step 1: 2 of 3 rows are provably invalid")
        assert error.endswith("Not finite: 0, 2.")
        assert answer["first"]
        assert answer["nothing"]
        assert answer["same"]
        assert all(map(torch.equal, answer["after"], answers[0]["after"]))
        assert {"first.weight": 7 * 301, "scale": 1}.items() <= answer["reference"].items()
        assert answer["steps"] == [(0, ()), (1, (0, 2)), (2, (1,)), (3, (1,)), (2, (1,)), (3, (1,))]
        (suspect, *_) = answer["suspects"]
        assert suspect.startswith("Rank 1 (host ")
        assert "for 2 steps in a row" in suspect
    about, *lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert (about["ranks"]["n"], about["ranks"]["devices"]) == (3, ["cpu"] * 3)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 2, 3]
    assert lines[1] == {"step": 1, "dropped": [0, 2], "error": lines[1]["error"]}
    assert lines[2]["weights"][1] == 0


FAULTY = {
    "nan": lambda place, loss: loss * float("nan") if place % 2 else loss,
    "scaled": lambda place, loss: loss * 1000,
    "flipped": lambda place, loss: loss * -10,
    "stale": lambda place, loss: loss,
}
"""What is wrong with the loss of a rank in a step."""


def goes_wrong(rank, fault, spec):
    """Seven steps in which rank 2 is wrong: the records, and each suspect with the step and the reason."""
    torch.manual_seed(7)
    model = Net()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True, **SMALL)
    records, suspects = [], {}

    def keep(record):
        records.append(record)
        if rank == 1:
            raise RuntimeError("an error of a program, on one rank")

    robust(
        wrapped,
        spec,
        1,
        on_step=keep,
        on_suspect=lambda suspect: suspects.setdefault(suspect.rank, (len(records), suspect.reason)),
    )
    learn = torch.optim.SGD(model.parameters(), lr=0.01 * (fault != "stale"))
    for place in range(7):
        model.zero_grad()
        # The same batch and the same parameters give the same gradient.
        loss = wrapped(batch(rank, 0 if (fault, rank) == ("stale", 2) else place), False)
        (FAULTY[fault](place, loss) if rank == 2 else loss).backward()
        learn.step()
    return records, suspects


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", ["trimmed_mean", "nnm+trimmed_mean", "multi_krum", "mean"])
@pytest.mark.parametrize("fault", sorted(FAULTY))
def test_a_rank_that_is_wrong_is_named(spec, fault, tmp_path):
    if spec == "mean" and fault == "nan":
        return  # it has no update
    words = {"nan": "NaN or infinity", "stale": "once more"}.get(
        fault, "as far from the update as the median"
    )
    for records, suspects in on_ranks(5, goes_wrong, tmp_path, fault, spec):
        assert suspects.keys() == {2}
        step, reason = suspects[2]
        assert step <= 6
        assert words in reason
        assert all(rank == 2 for record in records for rank in record.faulty)
        assert all(record.distances is not None and record.spread is not None for record in records)


def flips(rank, spec, leave_out=False):
    """Steps in which the gradient of rank 1 has the other sign, and the state in the middle of them."""
    torch.manual_seed(7)
    model = Net()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True, **SMALL)
    records, suspects = [], {}

    def suspect(found):
        suspects.setdefault(found.rank, (len(records), found.reason))

    reduction = robust(
        wrapped, spec, 1, on_step=records.append, on_suspect=suspect, leave_out_opposed=leave_out
    )
    state = None
    for place in range(8):
        model.zero_grad()
        own_gradient(wrapped, rank, place, {1: -1.0}, False, torch.float32).backward()
        state = reduction.state_dict() if place == 3 else state
    reduction.load_state_dict(state)
    for place in range(4, 8):
        model.zero_grad()
        own_gradient(wrapped, rank, place, {1: -1.0}, False, torch.float32).backward()
    return records, suspects


@pytest.mark.slow
@pytest.mark.exhaustive  # on drawn gradients there are quick tests
@pytest.mark.parametrize("spec", ["nnm+trimmed_mean", "median"])
def test_a_rank_with_a_flipped_sign_is_named(spec, tmp_path):
    for records, suspects in on_ranks(6, flips, tmp_path, spec):
        assert suspects.keys() == {1}
        step, reason = suspects[1]
        assert step <= 7
        assert "against those of the others" in reason
        assert all(record.agreement[1] == min(record.agreement) < 0 for record in records)
        assert records[4:8] == records[8:]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", ["geometric_median", "mean", "nnm+trimmed_mean"])
def test_an_opposed_rank_is_left_out_if_that_is_asked_for(spec, tmp_path):
    for records, suspects in on_ranks(6, flips, tmp_path, spec, True):
        assert 1 in suspects
        opposed = [1 in record.opposed for record in records]
        for before, record in zip(opposed[:7], records[1:8], strict=True):
            if spec == "geometric_median":  # which believes each rank in part
                assert (record.weights[1] == 0) == before
            assert record.error is None
            assert record.dropped == ()
        assert opposed[5:8] == [True] * 3
        assert str(records[4:8]) == str(records[8:])  # NaN is not equal to itself


def runs_out_of_batches(rank, spec, f):
    """Steps of ranks of which one has fewer batches than the others."""
    torch.manual_seed(7)
    model = Net()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True, **SMALL)
    records, errors = [], []
    robust(wrapped, spec, f, on_step=records.append, on_suspect=print)
    learn = torch.optim.SGD(model.parameters(), lr=0.1)
    with wrapped.join():
        for place in range(2 if rank == 1 else 6):
            model.zero_grad()
            bad = {0: float("nan"), 2: float("nan")} if place == 4 and f else {}
            try:
                own_gradient(wrapped, rank, place, bad, False, torch.float32).backward()
                learn.step()
            except AggregationError as error:
                errors.append(str(error))
    return records, errors, flat([p.detach() for p in model.parameters()])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("spec", "f"), [("mean", 0), ("median", 1)])
def test_a_rank_without_batches_takes_part_with_zeros(spec, f, tmp_path):
    """As DDP's `join` has it; an error is not raised where there is no backward pass."""
    answers = on_ranks(3, runs_out_of_batches, tmp_path, spec, f)
    for rank, (records, errors, parameters) in enumerate(answers):
        assert len(records) == 6
        assert str(records) == str(answers[0][0])
        assert torch.equal(parameters, answers[0][2])
        assert len(errors) == (1 if f and rank != 1 else 0)
        if not f:  # the mean of gradients of which one is zero
            assert math.isnan(records[5].agreement[1])


def resumes_by_hand(rank, spec, beta):
    """Steps of a model that the reduction does not know, and those of another one with its state."""
    from varangian.torch import robust_hook

    found, state = [], None
    for _ in range(2):
        torch.manual_seed(7)
        model = Net()
        wrapped = DistributedDataParallel(model, find_unused_parameters=True, **SMALL)
        reduction = Reduction(spec, 1, momentum=beta)
        wrapped.register_comm_hook(reduction, robust_hook)
        if state:
            reduction.load_state_dict(state)
        for place in range(2 if state else 0, 4):
            model.zero_grad()
            own_gradient(wrapped, rank, place, {}, True, torch.float32).backward()
            state = reduction.state_dict() if place == 1 else state
        found.append(flat([p.grad for p in model.parameters()]))
    return found, state["rank"], sorted({**state["reference"], **state["momentum"]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "beta"),
    [("centered_clipping", 0.0), pytest.param("arc+caf", 0.9, marks=pytest.mark.exhaustive)],
)
def test_a_hook_that_is_registered_by_hand_resumes_with_the_same_bits(spec, beta, tmp_path):
    for rank, ((one, other), of, names) in enumerate(on_ranks(3, resumes_by_hand, tmp_path, spec, beta)):
        assert torch.equal(one, other)
        assert of == (rank if beta else None)
        assert names == [*map(str, range(7))]


def loads_of_others(rank):
    """What is said of the momentum of another rank, and of tensors that do not fit; and a state before."""

    def wrapped():
        return DistributedDataParallel(nn.Linear(2, 2))

    first, said = wrapped(), []
    reduction = robust(first, "median", 1, momentum=0.9)
    first(torch.ones(1, 2)).sum().backward()
    state = reduction.state_dict()
    momentum = {name: torch.ones(9) for name in state["momentum"]}
    wrong = [
        {**state, "rank": (rank + 1) % 3},
        {**state, "momentum": {"other": torch.ones(4)}},
        {**state, "momentum": momentum},
    ]
    for each in wrong:
        second = wrapped()
        other = robust(second, "median", 1, momentum=0.9)
        try:
            other.load_state_dict(each)
            second(torch.ones(1, 2)).sum().backward()
        except ValueError as error:
            said.append(str(error))
    waiting = Reduction("median", 1, momentum=0.9)
    waiting.load_state_dict(wrong[0])
    assert waiting.state_dict()["rank"] == wrong[0]["rank"]
    with pytest.raises(ValueError, match=r"state\.rank"):
        waiting.attach([*nn.Linear(2, 2).named_parameters()], torch.device("cpu"))
    return said


@pytest.mark.slow
def test_a_state_of_another_rank_or_model_is_an_error(tmp_path):
    for rank, (of, name, size) in enumerate(on_ranks(3, loads_of_others, tmp_path)):
        assert of.startswith(f"state.rank: should be {rank}, this rank")
        assert '{**state, "rank": None, "momentum": {}}' in of
        assert name.startswith("state.momentum: should have names of parameters that are trained. Found 'o")
        assert size.startswith("state.momentum.weight: should have 4 numbers, as the parameter. Found 9")


def meets_again(rank):
    """Ranks that are known by name meet twice, the second time without the first of them."""
    import torch.distributed as dist

    model = nn.Linear(2, 2)
    reduction = Reduction("median", 1, on_suspect=print)
    given = [*model.named_parameters()], torch.device("cpu")
    reduction.attach(*given, name=f"replica{rank}", weight=rank + 1.0)
    weights = reduction._weights
    reduction._group.suspicion.see(Step(0, (2,), None))
    others = dist.new_group([1, 2, 3])
    if rank:
        reduction.attach(*given, others, name=f"replica{rank}", weight=rank + 1.0)
    faulty = reduction.state_dict()["faulty"]
    said = ""
    try:
        reduction.attach(*given, name=f"replica{rank}", weight=100.0 if rank == 1 else 1.0)
    except ValueError as error:
        said = str(error)
    return weights, faulty, said


@pytest.mark.slow
def test_ranks_that_are_known_by_name_keep_what_was_seen_of_them(tmp_path):
    for rank, (weights, faulty, said) in enumerate(on_ranks(4, meets_again, tmp_path)):
        assert weights == [1.0, 2.0, 3.0, 4.0]
        assert faulty == ([[], [], [0], []] if rank == 0 else [[], [0], []])
        assert said.startswith("aggregator: has no guarantee for 4 ranks of which 1 may be faulty.")


WRONG = {
    "f": ("1", True, 1.5, -1),
    "seed": ("x", None, 0.5),
    "momentum": ("0.9", float("nan"), True, 1),
    "per_bucket": ("no", 1),
    "audit": ("a", True, float("nan"), 2),
    "suspect_after": ("3", 2.5, 0),
    "on_step": (3,),
    "on_suspect": ("x",),
    "on_error": (None, "skip"),
    "weights": ("abc", 3, ["a", 1], [1, float("nan")], [0, 0], [-1, 1], []),
    "leave_out_opposed": ("no",),
    "log": (3,),
    "process_group": (3,),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_an_argument_of_a_wrong_type_is_an_error_that_names_it(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"^{name}: should be .* Found ") as raised:
            Reduction(**{name: value})
        assert str(raised.value).endswith(f"Found {value!r}.")


def disagrees(rank):
    said = []
    for given in ({"aggregator": ("median", "trimmed_mean")[rank == 1]}, {"f": 2}, {"aggregator": "mean"}):
        model = DistributedDataParallel(nn.Linear(2, 2))
        try:
            robust(model, **{"aggregator": "median", "f": 1, **given})
            robust(model, **{"aggregator": "median", "f": 1, **given})
        except ValueError as error:
            said.append(str(error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            robust(DistributedDataParallel(nn.Linear(2, 2).to(torch.complex64)))
        except ValueError as error:
            said.append(str(error))
    model = DistributedDataParallel(nn.Embedding(4, 2, sparse=True))
    robust(model, "median")
    try:
        model(torch.tensor([rank])).sum().backward()
    except ValueError as error:
        said.append(str(error))
    return said


@pytest.mark.slow
def test_ranks_that_were_told_different_things_hear_it(tmp_path):
    for said in on_ranks(3, disagrees, tmp_path):
        different, too_few, twice, complex_, sparse = said
        assert sparse.endswith(
            "Found torch.float32, torch.sparse_coo. An embedding has dense ones with sparse=False."
        )
        assert different.startswith("aggregator: should be the same on all ranks.")
        assert "ranks 0, 2 and rank 1" in different
        assert "no guarantee for 3 ranks of which 2 may be faulty" in too_few
        assert twice.startswith("model: should have no communication hook")
        assert complex_.startswith("parameters.weight: should be one of float16")


def test_what_cannot_work_is_refused_before_any_rank_is_asked():
    with pytest.raises(ValueError, match="aggregator: should work on single columns"):
        Reduction(Aggregator(Krum(f=1), per_block=True))
    with pytest.raises(ValueError, match="needs a gradient on data that all ranks trust"):
        Reduction("fltrust")
    with pytest.raises(ValueError, match="aggregator"):
        Reduction("nnm")
    with pytest.raises(ValueError, match="on_error: should be 'raise' or 'nan'"):
        Reduction(on_error="skip")
    with pytest.raises(
        ValueError, match=r"model: should be wrapped in DistributedDataParallel\. Found Linear"
    ):
        robust(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="state: should be what state_dict"):
        Reduction().load_state_dict({"version": 1})
    state = Reduction().state_dict() | {"version": 2}
    del state["opposition"]
    with pytest.raises(ValueError, match=r"It is of version 2\."):
        Reduction().load_state_dict(state)
    with pytest.raises(ValueError, match="seed: should be 4"):
        Reduction().load_state_dict(Reduction(seed=4).state_dict())
    with pytest.raises(ValueError, match=r"state: should be .*, a dict\. Found NoneType\."):
        Reduction().load_state_dict(None)
    with pytest.raises(ValueError, match="state: should be what state_dict"):
        Reduction().load_state_dict(Reduction().state_dict() | {"opposition": [1.0]})


@pytest.mark.slow
@pytest.mark.exhaustive  # that the module imports is seen above
@pytest.mark.parametrize("order", ["import varangian.torch, torch", "import torch, varangian.torch"])
def test_the_package_does_not_hide_torch(order):
    says = "print(torch.tensor([1]).sum().item(), varangian.torch.robust.__name__, 'grpc' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {order}; {says}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "robust", "False"]
