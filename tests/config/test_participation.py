import json

import pytest
from tests.config.kit import accepted, problems

from varangian.aggregators import NNM, Aggregator, Flag, Krum, Mean, Median
from varangian.aggregators.graphs import Exponential, RandomRegular, Ring
from varangian.cli.commands.check import verdict
from varangian.cli.commands.run import describe_participation
from varangian.config import load, loads
from varangian.config.build import machine
from varangian.config.settings import json_schema
from varangian.registry import ConfigError
from varangian.server.participation import PARTICIPATION, Asap, Async, FedAvg, FedLaAvg, Sync
from varangian.server.participation.asap import NeighbourhoodSelection
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.staleness import Constant, Hinge, Polynomial


@pytest.mark.parametrize(
    ("overrides", "aggregator", "participation", "quorum"),
    [
        ([], Flag(), Sync(), 12),
        (["participation=async"], Flag(), Async(), 9),
        (["participation.async.buffer=11", "participation.async.tau=0"], Flag(), Async(11, 0), 8),
        (["participation.async.staleness=constant"], Flag(), Async(staleness=Constant()), 9),
        (["participation.async.staleness.hinge.b=3"], Flag(), Async(staleness=Hinge(b=3)), 9),
        (["aggregator=fedlaavg"], Mean(), FedLaAvg(), 1),
        (["aggregator.fedlaavg.participants=5"], Mean(), FedLaAvg(5), 1),
        (["aggregator={fedlaavg: {rule: median, gather: 2}}"], Median(), FedLaAvg(gather=2.0), 1),
        (["aggregator.fedlaavg.rule.krum.select=2"], Krum(f=3, select=2), FedLaAvg(), 1),
        (["participation=fedlaavg"], Flag(), FedLaAvg(), 1),
        (["aggregator={fedavg: {participants: 10, rule: median}}"], Median(), FedAvg(10), 7),
        (["participation=fedavg", "server.quorum=15"], Flag(), FedAvg(), 15),
        (["aggregator=asap"], Mean(), Asap(), 2),
        (["aggregator.asap.graph=ring"], Mean(), Asap(Ring()), 1),
        (["aggregator.asap.graph.random_regular.degree=8"], Mean(), Asap(RandomRegular(8)), 6),
        (["participation.asap.tau=3", "f=0"], Flag(), Asap(Exponential(), 3), 5),
    ],
)
def test_who_takes_part_loads_by_its_name_and_back(overrides, aggregator, participation, quorum):
    config = load(None, overrides)
    assert config.aggregator == Aggregator(aggregator, f=config.f)
    assert (config.participation, config.quorum) == (participation, quorum)
    resolved = json.loads(json.dumps(config.resolved()))
    assert loads(resolved) == config
    assert accepted().accepts(resolved)


def test_every_name_can_stand_alone():
    for name in PARTICIPATION:
        config = load(None, [f"participation={name}", "f=0"])
        assert type(config.participation) is PARTICIPATION.entry(name)[0]
        assert loads(config.resolved()) == config


def test_mixings_stand_among_the_fields():
    config = load(None, ["aggregator.fedlaavg.mix=[nnm]", "aggregator.fedlaavg.rule=krum", "f=2"])
    assert config.aggregator == Aggregator(Krum(f=2), (NNM(f=2),), 2)
    config = load(
        None, ["aggregator={fedlaavg: {mix: [{nnm: {f: 3}}]}}", "aggregator.fedlaavg.mix.0.nnm.f=4"]
    )
    assert config.aggregator.mix == (NNM(f=4),)


def test_a_file_says_it_and_the_command_line_changes_one_field(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("aggregator: {fedlaavg: {participants: 5, rule: median}}\n")
    config = load(file, ["aggregator.fedlaavg.participants=6"])
    assert (config.participation, config.aggregator.rule) == (FedLaAvg(6), Median())
    config = load(file, ["aggregator=median"])
    assert (config.participation, config.aggregator.rule) == (Sync(), Median())
    config = load(None, [], {"VARANGIAN__AGGREGATOR__ASAP__GRAPH": "ring"})
    assert config.participation == Asap(Ring())


@pytest.mark.parametrize(
    ("override", "path", "said"),
    [
        ("participation=asyn", "participation", "no participation of this name ... mean 'async'?"),
        ("participation=null", "participation", "should be the name of a participation"),
        (
            "participation.async.tau=-1",
            "participation.async",
            "`tau` should be a number of rounds, at least 0",
        ),
        ("participation.async.tau=1.5", "participation.async.tau", "should be an integer. Found 1.5"),
        ("participation.async.buffer=0", "participation.async", "`buffer` should be null or at least 1"),
        (
            "participation.async.staleness=hing",
            "participation.async.staleness",
            "there is no staleness weight of this name. Found 'hing'. Did you mean 'hinge'?",
        ),
        (
            "participation.async.staleness.hinge.c=1",
            "participation.async.staleness.hinge.c",
            "there is no such field. Found 1.",
        ),
        ("aggregator.fedlaavg.participant=6", "aggregator.fedlaavg.participant", "mean 'participants'?"),
        ("aggregator.fedlaavg.rul=6", "aggregator.fedlaavg.rul", "Did you mean 'rule'?"),
        ("aggregator.fedlaavg.participants=0", "aggregator.fedlaavg", "null or at least 1 worker. Found 0"),
        (
            "aggregator.fedlaavg.participants=16",
            "aggregator.fedlaavg.participants",
            "workers, 15. Found 16",
        ),
        ("aggregator.fedavg.participants=16", "aggregator.fedavg.participants", "Found 16"),
        ("aggregator.fedavg.gather=-1", "aggregator.fedavg", "`gather` should be a number of seconds"),
        (
            "aggregator.fedlaavg.expire=0",
            "aggregator.fedlaavg",
            "`expire` should be null or at least 1 round",
        ),
        ("aggregator.fedlaavg.rule=krun", "aggregator.fedlaavg.rule", "Found 'krun'. Did you mean 'krum'?"),
        ("aggregator.fedlaavg.rule=nnm", "aggregator.fedlaavg.rule", "'nnm' is a mixing"),
        ("aggregator={asap: {mix: [nmn]}}", "aggregator.asap.mix.0", "Did you mean 'nnm'?"),
        ("aggregator={asap: 3}", "aggregator.asap", "should be a mapping of fields to values. Found 3"),
        ("aggregator={asap: {}, mix: []}", "aggregator", "should be asap alone"),
        ("aggregator=fedlavg", "aggregator", "Did you mean 'fedlaavg'?"),
        ("aggregator=async", "aggregator", "is a participation: write participation=async, and a rule"),
        ("aggregator={rule: asap}", "aggregator.rule", "write aggregator={asap: {rule: trimmed_mean}}"),
        ("aggregator.asap.graph=rng", "aggregator.asap.graph", "Found 'rng'. Did you mean 'ring'?"),
        ("aggregator.asap.tau=-1", "aggregator.asap", "`tau` should be null or a number of rounds"),
        ("worker.local_steps=0", "worker.local_steps", "should be greater than or equal to 1. Found 0"),
        ("worker.local_lr=0", "worker.local_lr", "should be greater than 0. Found 0"),
    ],
)
def test_a_mistake_is_told_where_the_user_made_it(override, path, said):
    found = problems(override)
    assert list(found) == [path]
    assert all(part in found[path] for part in said.split(" ... "))


@pytest.mark.parametrize(
    ("overrides", "path", "said"),
    [
        (
            "aggregator=fedlaavg; participation=async",
            "participation",
            "is chosen by aggregator.fedlaavg already. Found 'async'. Leave it out, or write",
        ),
        (
            "aggregator={mix: [nnm], rule: krum}; aggregator.asap.tau=1",
            "aggregator.asap",
            "participation.asap",
        ),
        ("aggregator=fedlaavg; aggregator.rule=krum", "aggregator.rule", "Write aggregator.fedlaavg.rule."),
    ],
)
def test_what_is_written_in_two_places_is_refused(overrides, path, said):
    found = problems(*overrides.split("; "))
    assert list(found) == [path]
    assert all(part in found[path] for part in said.split(" ... "))


def test_a_mistake_in_one_part_hides_no_other():
    found = problems("aggregator={fedlaavg: {participant: 3, rule: krun}}", "seed=-1")
    assert set(found) == {"aggregator.fedlaavg.participant", "aggregator.fedlaavg.rule", "seed"}


DELTA = "aggregator.fedlaavg.form=delta"
FOLLOWS = "byzantine={attack: alie, count: 2}; f=2"


@pytest.mark.parametrize(
    ("overrides", "path", "said"),
    [
        (
            "aggregator.asap.graph.halton.variant=original; workers=12; f=0",
            "aggregator.asap.graph",
            "disconnected",
        ),
        (
            "aggregator.asap.graph.random_regular.degree=20",
            "aggregator.asap.graph",
            "needs at least 21 workers",
        ),
        (
            "aggregator={asap: {graph: ring, rule: median}}",
            "aggregator.asap.graph",
            "too small: worker 0 hears from 2, which makes 3 rows ... Use a larger degree",
        ),
        (
            "aggregator={asap: {graph: complete, rule: krum}}; server.quorum=8",
            "aggregator.asap",
            "with a quorum of 8 of 15 workers, f = 3 the rule promises nothing",
        ),
        (
            "aggregator={asap: {rule: median}}; f=2; server.quorum=3",
            "aggregator.asap",
            "with a quorum of 3 of 5 vectors of a round, f = 2 ... hold with server.quorum=5 or f=1.",
        ),
        ("aggregator.asap.graph=ring; server.quorum=4", "server.quorum", "at most 3, as many vectors as"),
        (
            "participation.async.buffer=16",
            "participation.async.buffer",
            "at most the number of workers, 15",
        ),
        ("participation.async.buffer=4; server.quorum=5", "server.quorum", "at most 4, as many vectors as"),
        (
            "participation.async.buffer=8; aggregator=krum",
            "aggregator",
            "with 8 vectors in a round, f = 3 ... hold with participation.async.buffer=9 or f=2.",
        ),
        ("participation=async; workers=11; aggregator=krum", "aggregator", "hold with workers=12 or f=2"),
        (
            "aggregator={fedavg: {participants: 8, rule: krum}}",
            "aggregator.fedavg",
            "participants=9 or f=2.",
        ),
        (
            "aggregator={fedlaavg: {rule: krum}}; workers=8",
            "aggregator.fedlaavg",
            "with 8 workers, f = 3 ... hold with workers=9 or f=2.",
        ),
        (
            "aggregator=fedlaavg; server.deadline=0.5",
            "aggregator.fedlaavg.gather",
            "should be less than server.deadline, 0.5 seconds. Found 1.0",
        ),
        (f"{DELTA}", "aggregator.fedlaavg.form", "a sum hides the part of each worker"),
        (
            f"{DELTA}; f=0; aggregator.fedlaavg.rule=median",
            "aggregator.fedlaavg.form",
            "should be `latest` with this",
        ),
        (
            f"{DELTA}; f=0; aggregator.fedlaavg.mix=[nnm]",
            "aggregator.fedlaavg.form",
            "only their sum is kept",
        ),
        (
            f"{DELTA}; f=0; aggregator.fedlaavg.expire=3",
            "aggregator.fedlaavg",
            "should be left out with `form: delta`",
        ),
        ("server.rows_folder=/no-such", "server.rows_folder", "should be a folder that exists"),
        (
            "server.rows_folder=/; server.memory=window; aggregator=median",
            "server.rows_folder",
            "should be null with server.memory = window",
        ),
        (f"{DELTA}; f=0; server.rows=bfloat16", "server.rows", "a sum never loses a rounding"),
        (
            "participation=async; server.memory=window; aggregator=median",
            "server.memory",
            "with participation.async",
        ),
        ("aggregator={rule: krum, per_block: true}; server.memory=window", "server.memory", "whole rows"),
        ("participation=asap; server.memory=window; aggregator=mean", "server.memory", "should be `rows`"),
        (f"participation=async; {FOLLOWS}", "byzantine.attack", "needs the momentum of other workers"),
        (f"aggregator=asap; {FOLLOWS}", "byzantine.attack", "Set worker.momentum=0"),
        (
            f"aggregator.fedlaavg.participants=5; {FOLLOWS}",
            "byzantine.attack",
            "each takes part in other rounds",
        ),
    ],
)
def test_a_run_that_cannot_keep_its_promise_does_not_start(overrides, path, said):
    found = problems(*overrides.split("; "))
    assert set(found) == {path}
    assert all(part in found[path] for part in said.split(" ... "))


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregator={asap: {rule: median}}", "f=2", "server.quorum=5"],
        ["participation.async.buffer=12", "aggregator=krum"],
        ["participation=async", "workers=15", "aggregator=krum"],
        ["aggregator={fedlaavg: {rule: krum}}", "workers=9"],
        [DELTA, "f=0"],
        ["participation=async", *FOLLOWS.split("; "), "worker.momentum=0"],
        ["aggregator=fedlaavg", *FOLLOWS.split("; ")],
        ["aggregator.fedlaavg.participants=15", *FOLLOWS.split("; ")],
        ["aggregator=fedlaavg", "availability=alternating"],
        ["participation=async", "byzantine={attack: sign_flip, count: 2}"],
    ],
)
def test_what_the_remedies_offer_does_hold(overrides):
    assert load(None, overrides).quorum >= 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("", "a quorum of 12 of 15 workers, of which f = 3"),
        ("participation=async", "9 vectors, the fewest that make a round, of which f = 3"),
        ("aggregator={fedlaavg: {rule: krum}}", "the latest vectors of 15 workers, of which f = 3"),
    ],
)
def test_the_check_says_what_holds(overrides, said):
    assert said in verdict(load(None, overrides.split("; ") if overrides else []))


@pytest.mark.parametrize(
    ("settings", "valid"),
    [
        ({"aggregator": "fedlaavg"}, True),
        ({"aggregator": {"fedlaavg": None}}, True),
        ({"aggregator": {"fedlaavg": {"participants": 5, "rule": "krum", "mix": ["nnm"]}}}, True),
        ({"aggregator": {"fedlaavg": {"participant": 5}}}, False),
        ({"aggregator": {"asap": {"graph": {"random_regular": {"degree": 4}}}}}, True),
        ({"aggregator": {"asap": {"graph": "rng"}}}, False),
        ({"aggregator": {"asap": {"rule": "nnm"}}}, False),
        ({"aggregator": {"async": {}}}, False),
        ({"participation": "async"}, True),
        ({"participation": {"async": {"staleness": {"hinge": {"b": 2}}, "tau": 3}}}, True),
        ({"participation": {"async": {"staleness": "slow"}}}, False),
        ({"participation": {"fedlaavg": {"form": "sum"}}}, False),
    ],
)
def test_the_schema_accepts_what_loads(settings, valid):
    assert accepted().accepts(settings) is valid
    if valid:
        loads({**settings, "f": 0})
    else:
        with pytest.raises(ConfigError):
            loads({**settings, "f": 0})


def test_the_schema_says_what_the_parts_are():
    schema = json_schema()["properties"]["participation"]["anyOf"]
    fields = next(s for s in schema if s.get("title") == "async")["properties"]["async"]["properties"]
    assert fields["staleness"]["default"] == "polynomial"
    assert "age in rounds" in fields["tau"]["description"]
    assert any(option.get("title") == "hinge" for option in fields["staleness"]["anyOf"])


@pytest.mark.parametrize(
    ("overrides", "choice"),
    [
        (["participation.async.tau=3"], BufferSelection(12, 3, Polynomial())),
        (["participation.async={buffer: 11, staleness: constant}"], BufferSelection(11, 10, Constant())),
        (["aggregator.fedlaavg.participants=5"], LongestAbsent(5, 1.0)),
        (["aggregator.fedlaavg.gather=0"], LongestAbsent(15, 0.0)),
        (["aggregator.fedavg.participants=6"], LongestAbsent(6, 1.0)),
        (["aggregator={asap: {graph: ring, tau: 2}}"], NeighbourhoodSelection(Ring(), 2)),
    ],
)
def test_the_machine_is_told_what_the_configuration_says(overrides, choice):
    config = load(None, [*overrides, "rounds=7", "server.shortfall=skip"])
    built = machine(config)
    assert built.by_invitation
    assert built.policy.selection == choice
    assert built.policy.quorum == config.quorum
    assert (built.policy.rounds, built.policy.shortfall, built.policy.f) == (7, "skip", 3)


@pytest.mark.parametrize(
    ("overrides", "enough", "faulty", "too_few"),
    [
        (["aggregator=krum", "workers=10"], 7, 1, 6),
        (["participation.fedavg.participants=9", "aggregator=krum"], 9, 0, 8),
        (["participation.async.buffer=9", "aggregator=krum"], 5, 2, 4),
        (["aggregator={asap: {graph: complete, rule: krum}}"], 9, 0, 8),
        (["aggregator={fedlaavg: {participants: 4, rule: krum}}"], 1, 3, 0),
    ],
)
def test_the_machine_knows_what_the_rule_asks_of_a_round(overrides, enough, faulty, too_few):
    policy = machine(load(None, overrides)).policy
    names, guilty = policy.workers[3:], policy.workers[:faulty]
    assert policy.shortage(names[:enough], guilty, 1) == ""
    assert policy.shortage(names[:too_few], guilty, 1) != ""


def test_a_quorum_that_is_set_is_fixed():
    settings = ["participation.fedavg.participants=5", "f=1", "aggregator=median"]
    assert not machine(load(None, settings)).policy.fixed
    assert machine(load(None, [*settings, "server.quorum=3"])).policy.fixed


def test_everybody_in_step_needs_no_invitations():
    built = machine(load(None, ["server.quorum=13"]))
    assert (built.by_invitation, built.policy.quorum) == (False, 13)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("participation=async", "async"),
        (
            "aggregator={fedlaavg: {participants: 5, store: bfloat16}}",
            "fedlaavg, participants 5, store bfloat16",
        ),
        ("participation.async.staleness.hinge.b=3", "async, staleness hinge (a 10.0, b 3)"),
        ("aggregator.asap.graph=ring", "asap, graph ring"),
    ],
)
def test_a_run_says_who_takes_part(overrides, said):
    assert describe_participation(load(None, overrides.split("; "))) == said


def test_the_folder_for_vectors_is_one_of_the_server(tmp_path):
    found = problems(f"aggregator.fedlaavg.folder={tmp_path}/none")
    assert list(found) == ["aggregator.fedlaavg.folder"]
    assert "should be a folder that exists" in found["aggregator.fedlaavg.folder"]
    load(None, [f"aggregator.fedlaavg.folder={tmp_path}"])
    load(None, [f"aggregator.fedlaavg.folder={tmp_path}/none"], whole=False)  # on the machine of a worker
