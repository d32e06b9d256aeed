import json

import pytest
import torch
from tests.config.kit import accepted, problems

from varangian.aggregators import NNM, Aggregator, Flag, Krum, Median
from varangian.config import RunConfig, advice, load, loads
from varangian.config.build import learner, task
from varangian.config.settings import json_schema
from varangian.config.yaml_text import dump, parse
from varangian.registry import MISSING, ConfigError
from varangian.server.training.ema import Ema
from varangian.worker.attacks import ATTACKS, Alie, Sleeper
from varangian.worker.simulation.availability import AVAILABILITY, Always
from varangian.worker.simulation.delays import DELAYS, NoDelay
from varangian.worker.training.models import MODELS, Custom, Mlp


def test_the_defaults_are_a_run_that_starts():
    config = load()
    assert (config.workers, config.f, config.quorum, config.rounds) == (15, 3, 12, 200)
    assert config.aggregator == Aggregator(Flag(), f=3)
    assert advice(config) == []


@pytest.mark.parametrize(
    ("override", "path", "said"),
    [
        ("wrokers=3", "wrokers", "there is no such setting. Found 3. Did you mean 'workers'?"),
        ("server.prot=3", "server.prot", "Did you mean 'port'?"),
        ("attack=alie", "attack", "Did you mean 'byzantine.attack'?"),
        ("server.lr=1", "server.lr", "Did you mean 'optimizer.lr'?"),
        ("zzz=1", "zzz", "Known: aggregator, availability, backend"),
        ("workers=15.0", "workers", "should be an integer. Found 15.0"),
        ("workers=true", "workers", "should be an integer. Found True"),
        ("workers='15'", "workers", "should be an integer. Found '15'"),
        ("workers=0", "workers", "should be greater than or equal to 1. Found 0"),
        ("f=-1", "f", "should be greater than or equal to 0. Found -1"),
        ("optimizer.lr=fast", "optimizer.lr", "should be a number. Found 'fast'"),
        ("optimizer.lr=.nan", "optimizer.lr", "should be a finite number"),
        ("optimizer.nesterov=no", "optimizer.nesterov", "should be true or false. Found 'no'"),
        ("backend=simulat", "backend", "Did you mean 'simulate'?"),
        ("server.port=70000", "server.port", "should be less than or equal to 65535"),
        (
            "server.data_port=70000",
            "server.data_port",
            "should be less than or equal to 65535. Found 70000",
        ),
        ("server.data_port=-1", "server.data_port", "should be greater than or equal to 0. Found -1"),
        ("server.data_port=any", "server.data_port", "should be an integer. Found 'any'"),
        ("server.dataport=1", "server.dataport", "Did you mean 'data_port'?"),
        ("server=5", "server", "should be a mapping of settings to values. Found 5"),
        ("server.checkpoint.evry=5", "server.checkpoint.evry", "Did you mean 'every'?"),
        ("server.checkpoint.every=0", "server.checkpoint.every", "should be greater than or equal to 1"),
        ("server.checkpoint=5", "server.checkpoint", "should be a mapping of settings to values. Found 5"),
        (
            "server.deadline=soon",
            "server.deadline",
            "should be a number of seconds above 0, or auto. Found 'soon'",
        ),
        (
            "server.deadline=-1",
            "server.deadline",
            "should be a number of seconds above 0, or auto. Found -1",
        ),
        ("server.absent_after=1", "server.absent_after", "should be greater than or equal to 2. Found 1"),
        (
            "aggregator=krun",
            "aggregator",
            "there is no aggregator of this name. Found 'krun'. Did you mean 'krum'?",
        ),
        ("aggregator.krum.F=3", "aggregator.krum.F", "there is no such field. Found 3. Did you mean 'f'?"),
        (
            "aggregator.krum.select=1.5",
            "aggregator.krum.select",
            "should be an integer or 'max'. Found 1.5",
        ),
        ("aggregator={mix: [nnm], rule: nnm}", "aggregator.rule", "'nnm' is a mixing"),
        ("aggregator={mix: [nmn], rule: krum}", "aggregator.mix.0", "Did you mean 'nnm'?"),
        (
            "aggregator=nnm",
            "aggregator",
            "'nnm' is a mixing, a step before a rule: write nnm+trimmed_mean.",
        ),
        ("aggregator=nmn+krum", "aggregator", "Found 'nmn'. Did you mean 'nnm'?"),
        ("aggregator=null", "aggregator", "should be the name of an aggregator"),
        ("model.mlp.hidden=wide", "model.mlp.hidden", "should be an integer or a list"),
        ("model.mlp.hidden=0", "model.mlp", "`hidden` should be one or more widths of at least 1. Found 0"),
        ("data=mnist", "data", "there is no data set of this name"),
        ("availability=sometimes", "availability", "there is no availability of this name"),
        ("availability.alternating.period=1", "availability.alternating", "at least 2. Found 1"),
        ("delays.constant.factor=2", "delays.constant.step", "is required (a number)"),
        (
            "ema=0.9",
            "ema",
            "should be null, or the settings of an average of the model: decay, reference_batch",
        ),
        ("ema.decay=0.9", "ema.reference_batch", "is required (an integer)"),
        ("ema={decay: 1, reference_batch: 32}", "ema", "`decay` should be at least 0 and below 1. Found 1"),
        ("ema={reference_batsh: 32, reference_batch: 3}", "ema.reference_batsh", "mean 'reference_batch'?"),
        ("delays=null", "delays", "should be the name of a delay"),
        ("partition.dirichlet.alfa=1", "partition.dirichlet.alfa", "Did you mean 'alpha'?"),
        ("optimizer.schedule.step.gamma=0.1", "optimizer.schedule.step.every", "is required (an integer)"),
        ("optimizer.nesterov=true", "optimizer", "`momentum` should be above 0 with `nesterov`"),
        ("byzantine.attack=sign_fip", "byzantine.attack", "Did you mean 'sign_flip'?"),
        ("byzantine.knows=everything", "byzantine.knows", "should be 'own', 'colluders' or 'all'"),
        ("evaluate.every=0", "evaluate.every", "should be greater than or equal to 1"),
        ("wire.dtype=float16", "wire.dtype", "should be 'float32', 'bfloat16' or 'int8'"),
    ],
)
def test_one_mistake_is_one_problem_with_path_value_and_rule(override, path, said):
    found = problems(override)
    assert list(found) == [path]
    assert said in found[path]


def test_all_problems_are_reported_at_once(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "rouns: 3\nf: x\nserver: {port: -1, deadline: 0}\naggregator: krun\nmodel: {mlp: {hiden: 1}}\n"
    )
    found = problems("optimizer.lr=0", "seed=-1", file=file)
    assert set(found) == {
        "rouns",
        "f",
        "server.port",
        "server.deadline",
        "aggregator",
        "model.mlp.hiden",
        "optimizer.lr",
        "seed",
    }


def test_problems_between_valid_settings_come_with_the_others():
    found = problems("server.port=-1", "byzantine.count=2")
    assert set(found) == {"server.port", "byzantine.attack"}


def test_a_mistyped_name_hides_what_it_may_have_meant():
    assert set(problems("wrokers=30", "f=10")) == {"wrokers"}


@pytest.mark.parametrize(
    ("overrides", "path", "said"),
    [
        ("f=15", "f", "should be below the number of workers, 15"),
        ("workers=3", "f", "should be below the number of workers, 3"),
        ("server.quorum=16", "server.quorum", "should be at most the number of workers, 15"),
        ("server.quorum=0", "server.quorum", "should be greater than or equal to 1"),
        (
            "server.port=5000; server.data_port=5000",
            "server.data_port",
            "should not be `server.port`. Found 5000. Set server.data_port=0 or server.data_port=null",
        ),
        (
            "byzantine.count=15; byzantine.attack=mimic",
            "byzantine.count",
            "at least one of the 15 workers honest",
        ),
        ("byzantine.count=2", "byzantine.attack", "is needed when there are Byzantine workers"),
        ("byzantine.attack=mimic", "byzantine.count", "at least 1 when there is an attack. Found 0"),
        (
            "byzantine.attack=alie; byzantine.count=2; byzantine.knows=own",
            "byzantine.attack",
            "cannot be mounted: it needs to know 'colluders'",
        ),
        (
            "byzantine.attack=equivocate; byzantine.count=2; backend=simulate",
            "byzantine.attack",
            "no connections to attack. Set backend=processes or byzantine.attack=sign_flip",
        ),
        (
            "server.deadline=auto; server.deadline_floor=9; server.deadline_ceiling=6",
            "server.deadline_floor",
            "should be at most `server.deadline_ceiling`, 6. Found 9",
        ),
        (
            "server.memory=window; aggregator=median; server.keep_rows=3",
            "server.keep_rows",
            "which stores no whole vectors. Found 3. Set server.keep_rows=0 or server.memory=rows.",
        ),
        (
            "byzantine.attack={churn: {attack: sign_flip}}; byzantine.count=2; backend=simulate",
            "byzantine.attack",
            "is an attack on the protocol, and backend=simulate has no connections to attack",
        ),
        (
            "byzantine.attack={churn: {attack: alie}}; byzantine.count=2; byzantine.knows=own",
            "byzantine.attack",
            "cannot be mounted: it needs to know 'colluders'",
        ),
        (
            "byzantine.attack={churn: {attack: label_flip}}; byzantine.count=2",
            "byzantine.attack.churn",
            "`attack` should be an attack on vectors, as sign_flip",
        ),
        ("aggregator=krum; workers=8", "aggregator", "needs n >= 2 f + 3, 9 for f = 3, and n is 8"),
        ("aggregator=krum; workers=8", "aggregator", "It would hold with workers=9 or f=2."),
        (
            "aggregator=krum; server.quorum=8",
            "aggregator",
            "A missing worker is a row less and does not lower f. It would hold with server.quorum=9",
        ),
        ("aggregator=krum; server.quorum=8", "aggregator", "with a quorum of 8 of 15 workers, f = 3"),
        ("aggregator=krum; workers=4; server.quorum=4", "aggregator", "with 4 workers, f = 3"),
        ("aggregator.krum.f=2", "aggregator", "it was told f = 2, but 3 of the workers may be Byzantine"),
        ("aggregator={mix: [{bucketing: {s: 4}}], rule: median}", "aggregator", "bucketing"),
        ("aggregator=fltrust", "aggregator", "which this server does not compute"),
        ("aggregator={monna: {pivot: 0}}", "aggregator", "names a row by its place, and in a run"),
        (
            "availability=alternating",
            "availability",
            "too few for its quorum of 12. Set server.quorum=7 or server.shortfall=skip.",
        ),
        (
            "availability={diurnal: {trace: [1, 0, 0]}}; f=0; server.quorum=1; workers=2",
            "availability",
            "0 workers take part in round 2, too few for its quorum of 1. Set server.shortfall=skip.",
        ),
        (
            "availability={diurnal: {trace: [0, 1]}}; f=0; server.shortfall=skip; workers=1; seed=3",
            "availability",
            "should let a worker take part in round 0",
        ),
        (
            "delays={constant: {step: 1, workers: [3, 15]}}",
            "delays",
            "has a delay for worker 15, and they are numbered from 0 to 14",
        ),
        (
            "byzantine={count: 1, attack: {mimic: {target: 0}}}; availability=alternating; server.quorum=7",
            "byzantine.attack",
            "mimics worker 0 in every round",
        ),
    ],
)
def test_a_run_that_cannot_keep_its_promise_does_not_start(overrides, path, said):
    found = problems(*overrides.split("; "))
    assert set(found) == {path}
    assert said.lower() in found[path].lower()


@pytest.mark.parametrize(
    "numbers", [["workers=9"], ["server.quorum=9", "workers=10"], ["f=2", "workers=8"]]
)
def test_what_the_remedy_offers_does_hold(numbers):
    assert load(None, ["aggregator=krum", *numbers]).aggregator.rule.select == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("aggregator=mean", "aggregator: this rule promises nothing"),
        ("byzantine.count=4; byzantine.attack=mimic", "byzantine.count: 4 workers attack, but f = 3"),
    ],
)
def test_what_is_hardly_meant_is_said_but_allowed(overrides, said):
    assert [said in sentence for sentence in advice(load(None, overrides.split("; ")))] == [True]


def test_the_mean_alone_is_nothing_to_warn_of_when_nobody_may_be_byzantine():
    assert advice(load(None, ["aggregator=mean", "f=0"])) == []


def test_the_declared_f_reaches_every_part_that_is_not_told_otherwise():
    config = load(None, ["f=2", "aggregator={mix: [nnm, {nnm: {f: 3}}], rule: {krum: {select: 2}}}"])
    assert config.aggregator == Aggregator(Krum(f=2, select=2), (NNM(f=2), NNM(f=3)), 2)


def test_a_name_on_the_command_line_leaves_nothing_of_the_group_in_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "aggregator: {mix: [nnm], rule: {krum: {select: 3}}}\nbyzantine: {count: 1, attack: mimic}\n"
    )
    config = load(file, ["aggregator=median", "byzantine.attack.alie.z=1.5", "byzantine.count=3"])
    assert config.aggregator == Aggregator(Median(), f=3)
    assert config.byzantine.attack == Alie(z=1.5)


def test_the_command_line_wins_over_the_environment_which_wins_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\nrounds: 1\nworkers: 20\n")
    config = load(file, ["seed=3"], {"VARANGIAN__SEED": "2", "VARANGIAN__ROUNDS": "2"})
    assert (config.seed, config.rounds, config.workers) == (3, 2, 20)


@pytest.mark.parametrize(
    ("overrides", "port"),
    [
        ([], 0),
        (["server.data_port=0", "server.port=0"], 0),
        (["server.port=5000"], 0),
        (["server.port=5000", "server.data_port=5001"], 5001),
        (["server.port=5000", "server.data_port=null"], None),
    ],
)
def test_payloads_have_any_port_or_one_or_none(overrides, port):
    config = load(None, overrides)
    assert config.server.data_port == port
    assert loads(json.loads(json.dumps(config.resolved()))) == config


@pytest.mark.parametrize(
    ("overrides", "every"),
    [
        ([], 50),
        (["server.checkpoint.every=7"], 7),
        (["server.checkpoint.keep=7"], 50),
        (["server.checkpoint=null"], None),
        (["backend=simulate"], None),
        (["backend=simulate", "server.checkpoint.every=7"], 7),
    ],
)
def test_a_simulation_writes_checkpoints_where_it_is_asked_to(overrides, every):
    config = load(None, overrides)
    assert config.checkpoint_every == every
    assert loads(json.loads(json.dumps(config.resolved()))) == config


def test_an_empty_heading_is_an_empty_section(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("server:\nworker:\n")
    assert load(file) == load()


def test_a_function_of_the_user_is_named_like_everything_else():
    config = load(None, ["model=my.models:small"])
    assert config.model == Custom(target="my.models:small")
    assert load(None, ["model={custom: {target: 'a:b', options: {width: 3}}}"]).model.options == {
        "width": 3
    }


def test_what_was_chosen_is_not_offered_to_change():
    hint = problems("aggregator=krum", "server.quorum=8")["aggregator"].partition("It would")[2]
    assert hint == " hold with server.quorum=9 or f=2."


def test_an_attack_that_cannot_be_mounted_is_refused_in_a_cluster_too():
    impossible = ["byzantine.attack=alie", "byzantine.count=2", "byzantine.knows=own"]
    with pytest.raises(ConfigError, match="cannot be mounted"):
        load(None, impossible, whole=False)


def test_one_program_of_a_cluster_need_not_know_the_attack():
    assert load(None, ["byzantine.count=3"], whole=False).byzantine.attack is None


@pytest.mark.parametrize("attack", ["null", *ATTACKS])
def test_what_is_resolved_loads_equal(attack):
    overrides = [
        "aggregator={mix: [nnm, {clipping: {radius: 2}}], rule: multi_krum}",
        "model.mlp.hidden=[3, 4]",
    ]
    if attack != "null":
        overrides += [f"byzantine.attack={attack}", "byzantine.count=3"]
    config = load(None, overrides)
    text = dump(config.resolved())
    assert loads(parse(text, "resolved")) == config
    assert loads(json.loads(json.dumps(config.resolved()))) == config


@pytest.mark.parametrize(("section", "registry"), [("availability", AVAILABILITY), ("delays", DELAYS)])
def test_every_way_to_come_and_go_loads_by_its_name(section, registry):
    for name in registry:
        fields = {field.name: 2.5 for field in registry.fields(name) if field.default is MISSING}
        config = load(None, [f"{section}={json.dumps({name: fields})}", "server.shortfall=skip"])
        built = getattr(config, section)
        assert type(built) is registry.entry(name)[0]
        assert loads(json.loads(json.dumps(config.resolved()))) == config
        assert getattr(task(config).timetable, section) == built


def test_the_settings_of_an_average_are_set_one_by_one():
    config = load(None, ["ema.reference_batch=480", "ema.decay=0.5"])
    assert config.ema == Ema(decay=0.5, reference_batch=480)
    assert loads(json.loads(json.dumps(config.resolved()))) == config
    assert load().ema is None
    parameters = torch.ones(3)
    average = learner(config, parameters).average
    assert average.parameters.tolist() == [1, 1, 1]
    assert average.update(torch.zeros(3), 480) == 0.5
    assert learner(load(), parameters).average is None


def test_everybody_is_always_there_unless_something_else_is_said():
    assert (load().availability, load().delays) == (Always(), NoDelay())


@pytest.mark.parametrize("model", ["softmax", "mlp", "cnn", "resnet18"])
def test_every_model_loads_by_its_name(model):
    config = load(None, [f"model={model}"])
    assert type(config.model) is MODELS.entry(model)[0]
    assert loads(config.resolved()) == config


def test_a_configuration_does_not_change():
    config = load()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2
    assert config.model == Mlp()


def test_objects_can_stand_where_names_do():
    config = RunConfig(aggregator=Aggregator(Krum(f=3), f=3), model=Mlp(hidden=8))
    assert config == load(None, ["aggregator=krum", "model.mlp.hidden=8"])


@pytest.mark.parametrize(
    ("settings", "valid"),
    [
        ({}, True),
        ({"aggregator": "krum"}, True),
        ({"aggregator": "krun"}, False),
        ({"aggregator": {"krum": {"select": "max"}}}, True),
        ({"aggregator": {"krum": {"select": "min"}}}, False),
        ({"aggregator": {"krum": {"F": 1}}}, False),
        ({"aggregator": {"mix": ["nnm", {"bucketing": {"s": 3}}], "rule": "median"}}, True),
        ({"aggregator": {"mix": ["krum"], "rule": "median"}}, False),
        ({"aggregator": "nnm+krum"}, True),
        ({"aggregator": "bucketing + nnm+median"}, True),
        ({"aggregator": {"fedavg": {"rule": "nnm+krum"}}}, True),
        ({"aggregator": "nnm"}, False),
        ({"aggregator": "krum+nnm"}, False),
        ({"aggregator": {"mix": ["nnm"]}}, False),
        ({"byzantine": {"attack": None}}, True),
        ({"byzantine": {"attack": {"alie": {"z": 1.5}}}}, True),
        ({"server": {"port": "x"}}, False),
        ({"server": {"data_port": None}}, True),
        ({"server": {"data_port": "x"}}, False),
        ({"server": {"checkpoint": {"every": 5, "best": None}, "deadline": "auto"}}, True),
        ({"server": {"checkpoint": None, "deadline": 5}}, True),
        ({"server": {"checkpoint": {"evry": 5}}}, False),
        ({"server": {"deadline": "soon"}}, False),
        ({"availability": "churn", "delays": {"pareto": {"least": 0.5}}}, True),
        ({"availability": {"diurnal": {"trace": "high"}}}, False),
        ({"ema": None}, True),
        ({"ema": {"decay": 0.9, "reference_batch": 32}}, True),
        ({"ema": {"decay": 0.9, "batch": 32}}, False),
        ({"ema": {}}, False),
        ({"serve": {}}, False),
    ],
)
def test_the_schema_accepts_what_loads(settings, valid):
    assert accepted().accepts(settings) is valid


def test_the_schema_accepts_every_setting_resolved():
    settings = load(
        None, ["byzantine.attack=gaussian", "byzantine.count=1", "aggregator=multi_krum"]
    ).resolved()
    assert accepted().accepts(json.loads(json.dumps(settings)))


def test_the_schema_says_what_things_are():
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    krum = next(s for s in schema["properties"]["aggregator"]["anyOf"] if s.get("title") == "krum")[
        "properties"
    ]["krum"]
    assert "n - f - 2" in krum["description"]
    assert krum["properties"]["select"]["default"] == 1
    assert "Multi-Krum" in krum["properties"]["select"]["description"]
    assert schema["$defs"]["Server"]["properties"]["deadline"]["description"].startswith("Seconds")
    assert schema["properties"]["f"]["default"] == 3


@pytest.mark.parametrize(
    ("rule", "f", "workers", "quorum"),
    [
        ("krum", 2, 7, 7),
        ("krum", 2, 8, 7),
        ("krum", 2, 9, 7),
        ("krum", 2, 10, 8),
        ("bulyan", 2, 11, 11),
        ("median", 2, 5, 5),
        ("median", 2, 7, 5),
        ("mean", 0, 5, 5),
    ],
)
def test_the_default_quorum_is_what_the_rule_needs_and_leaves_room_for_f(rule, f, workers, quorum):
    """Each rule runs with the n of its paper; then nobody may be missing."""
    assert load(None, [f"aggregator={rule}", f"f={f}", f"workers={workers}"]).quorum == quorum


def test_an_attack_inside_another_is_set_by_path_and_in_the_schema():
    path = "byzantine.attack.sleeper.attack.alie.z=1.5"
    assert load(None, [path, "byzantine.count=3"]).byzantine.attack == Sleeper(attack=Alie(z=1.5))
    found = problems("byzantine.attack.sleeper.attack=alei", "byzantine.count=3")
    assert "Did you mean 'alie'" in found["byzantine.attack.sleeper.attack"]

    def takes(attack):
        return accepted().accepts({"byzantine": {"attack": attack}})

    assert takes({"sleeper": {"attack": {"stale": {"attack": {"alie": {"z": "optimal"}}}}}})
    assert not takes({"sleeper": {"attack": {"alie": {"z": "best"}}}})
    assert not takes({"sleeper": {"attack": None}})
