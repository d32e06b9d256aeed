"""Runs with a gate on a held-out loss: who is left out, and that nothing else depends on where they run."""

import json
from pathlib import Path

import pytest
from tests.extent import for_everybody

from varangian.experiments.audit.command import audit
from varangian.launch import run
from varangian.launch.checkpoints.resume import resume, settings_of
from varangian.launch.checkpoints.rewind import branch
from varangian.registry import ConfigError

GATE = ("server.gate={batch: 32}", "evaluate.validation=0.2")
ATTACKED = ("workers=9", "f=2", "byzantine.count=2", "byzantine.attack=sign_flip")
BAD = {"w07", "w08"}
INNER = ("worker.local_steps=3", "worker.inner={adamw: {lr: 0.01}}", "optimizer.lr=0.7")
LATER = pytest.mark.exhaustive
WAYS = {
    "sync": (),
    "fedavg": ("participation={fedavg: {participants: 7}}", "worker.local_steps=3"),
    "fedlaavg": ("participation={fedlaavg: {participants: 6}}",),
    "async": ("participation=async",),
    "asap": ("participation={asap: {graph: complete}}",),
    "inner": INNER,
    "fragments": ("server.fragments=2", *INNER),
    "bfloat16": ("server.rows=bfloat16", "wire.dtype=bfloat16"),
}


def some_now(*now):
    """All ways, of which these alone are in the quick tests."""
    return [*now, *(pytest.param(way, marks=LATER) for way in WAYS if way not in now)]


def test_vectors_that_raise_the_loss_are_left_out_and_spend_nothing(carried_out):
    result, records, _ = carried_out(*GATE, *ATTACKED, "aggregator=mean")
    assert result.outcome == "finished"
    for record in records:
        assert record.gated.keys() == BAD
        assert all(rise > 0 for rise in record.gated.values())
        assert record.weights.keys() == {f"w{i:02}" for i in range(7)}
        assert (record.dropped, record.missing) == ({}, ())
        assert record.seconds["gate"] > 0
    kept = [json.loads(line) for line in (Path(result.folder) / "rounds.jsonl").read_text().splitlines()]
    assert [line["gated"] for line in kept] == [record.gated for record in records]
    assert all(len(line["pushes"]) == 9 for line in kept)
    honest = carried_out(*GATE, "workers=9", "f=2", "aggregator=mean")[0]
    assert result.loss < 1.2 * honest.loss


def test_without_one_a_run_has_the_bits_that_it_had(carried_out):
    held_out = "evaluate.validation=0.2"
    plain, records, _ = carried_out(held_out)
    never, _, _ = carried_out(held_out, "server.gate={tolerance: 1e30}")
    assert plain.digest == never.digest
    assert all(record.gated == {} and "gate" not in record.seconds for record in records)


@pytest.mark.parametrize("way", some_now("sync", "fedlaavg"))
def test_every_way_to_take_part_has_a_gate(carried_out, way):
    settings = (*GATE, *ATTACKED, *WAYS[way], "aggregator=median", "worker.momentum=0", "rounds=6")
    result, records, _ = carried_out(*settings)
    assert result.outcome == "finished"
    assert any(record.gated.keys() & BAD for record in records)
    assert all(len(record.gated) <= 2 for record in records)
    assert carried_out(*settings)[0].digest == result.digest


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["sync", "inner", "fragments", "bfloat16"])
def test_processes_and_simulation_have_one_digest(small, way):
    settings = (*GATE, *ATTACKED, *WAYS[way], "aggregator=nnm+trimmed_mean", "worker.momentum=0")
    digests, gated = set(), []
    for backend in ("processes", "simulate"):
        records = []
        digests.add(
            run(small(*settings, *for_everybody(), f"backend={backend}"), observe=records.append).digest
        )
        gated.append([record.gated for record in records])
    assert len(digests) == 1
    assert gated[0] == gated[1]
    assert any(gated[0])


@pytest.mark.parametrize("way", some_now("sync"))
def test_a_run_that_goes_on_has_the_same_bits(small, way):
    settings = (*GATE, *ATTACKED, *WAYS[way], "aggregator=median", "worker.momentum=0", "rounds=6")
    straight = run(small(*settings))
    kept = run(small(*settings, "server.checkpoint={every: 2, keep: 9}"))
    begun = branch(kept.folder, 2)
    config, resumed = resume(settings_of(begun), begun, lambda text: None)
    ended = run(config, resume=resumed)
    assert ended.digest == kept.digest == straight.digest


@pytest.mark.parametrize(
    "way", ["fragments", *(pytest.param(way, marks=LATER) for way in ("sync", "async", "fedlaavg"))]
)
def test_kept_vectors_are_aggregated_again_without_those_that_were_left_out(carried_out, way):
    settings = (*GATE, *ATTACKED, *WAYS[way], "aggregator=nnm+trimmed_mean", "server.keep_rows=3")
    result, records, _ = carried_out(*settings)
    assert any(record.gated for record in records[-3:])
    found = audit(result.folder, recompute=True)
    assert not found.problems, found.problems
    assert any("3 rounds, 2 to 4: recomputed from kept rows, the same bits" in fact for fact in found.facts)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (("server.gate={}",), "evaluate.validation holds out none"),
        ((*GATE, "f=0"), "should be null with f = 0"),
        ((*GATE, "workers=5", "f=2", "server.quorum=5"), "can leave out no vector here"),
        ((*GATE, "server.memory=window"), "stores no whole vectors"),
        (
            (*GATE, "aggregator=mean", "f=0", "participation={fedlaavg: {form: delta}}"),
            "keeps no vectors of workers",
        ),
    ],
)
def test_where_it_makes_no_sense_there_is_one_sentence(small, settings, rule):
    with pytest.raises(ConfigError) as caught:
        small(*settings)
    problems = [one for one in caught.value.problems if rule in one.rule]
    assert [one.path for one in problems] == ["server.gate"]


def test_settings_are_checked(small):
    for wrong in (
        "{batch: 0}",
        "{step: fast}",
        "{step: -1}",
        "{tolerance: -0.1}",
        "{every: 0}",
        "{odd: 1}",
    ):
        with pytest.raises(ConfigError, match=r"server\.gate"):
            small(f"server.gate={wrong}", "evaluate.validation=0.2")
    config = small(*GATE, "server.gate.step=0.5")
    assert (config.server.gate.batch, config.server.gate.step) == (32, 0.5)


def test_a_record_that_names_others_is_not_that_of_its_vectors(carried_out):
    settings = (*GATE, *ATTACKED, "aggregator=mean", "server.keep_rows=5")
    result, *_ = carried_out(*settings)
    file = Path(result.folder) / "rounds.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["gated"] = {"w00": 1.0, "odd": None}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    problems = audit(result.folder, recompute=True).problems
    assert any("round 3" in one and "than its kept rows give" in one for one in problems), problems
