import pytest

from varangian.config.overrides import Assignment, apply_overrides, from_command_line, from_environment
from varangian.config.settings import groups
from varangian.registry import ConfigError

GROUPS = groups()
KRUM = {"krum": {"select": 3}}
PIPELINE = {"mix": ["nnm"], "rule": KRUM}


def overridden(settings, *texts):
    return apply_overrides(settings, from_command_line(texts), GROUPS)


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        # A name replaces the whole group, whatever was there.
        ({"aggregator": KRUM}, "aggregator=flag", {"aggregator": "flag"}),
        ({"aggregator": PIPELINE}, "aggregator=flag", {"aggregator": "flag"}),
        ({"aggregator": KRUM}, "aggregator={krum: {f: 2}}", {"aggregator": {"krum": {"f": 2}}}),
        (
            {"byzantine": {"attack": {"alie": {"z": 1}}}},
            "byzantine.attack=mimic",
            {"byzantine": {"attack": "mimic"}},
        ),
        # A path through a group keeps the fields of the same name and replaces another one.
        ({"aggregator": KRUM}, "aggregator.krum.f=2", {"aggregator": {"krum": {"select": 3, "f": 2}}}),
        ({"aggregator": "krum"}, "aggregator.krum.f=2", {"aggregator": {"krum": {"f": 2}}}),
        ({"aggregator": {"krum": None}}, "aggregator.krum.f=2", {"aggregator": {"krum": {"f": 2}}}),
        ({"aggregator": "median"}, "aggregator.krum.f=2", {"aggregator": {"krum": {"f": 2}}}),
        ({}, "aggregator.flag.lam=1", {"aggregator": {"flag": {"lam": 1}}}),
        ({}, "byzantine.attack.alie.z=1.5", {"byzantine": {"attack": {"alie": {"z": 1.5}}}}),
        # Pipelines.
        ({}, "aggregator.mix=[nnm]", {"aggregator": {"rule": {"flag": {}}, "mix": ["nnm"]}}),
        (
            {"aggregator": "krum"},
            "aggregator.mix=[nnm]",
            {"aggregator": {"rule": {"krum": {}}, "mix": ["nnm"]}},
        ),
        (
            {"aggregator": PIPELINE},
            "aggregator.rule=median",
            {"aggregator": {"mix": ["nnm"], "rule": "median"}},
        ),
        (
            {"aggregator": PIPELINE},
            "aggregator.rule.krum.select=4",
            {"aggregator": {"mix": ["nnm"], "rule": {"krum": {"select": 4}}}},
        ),
        (
            {"aggregator": PIPELINE},
            "aggregator.mix.0.nnm.f=2",
            {"aggregator": {"mix": [{"nnm": {"f": 2}}], "rule": KRUM}},
        ),
        (
            {"aggregator": "nnm+krum"},
            "aggregator.rule=median",
            {"aggregator": {"mix": ["nnm"], "rule": "median"}},
        ),
        (
            {},
            "aggregator.fedavg.rule=nnm+krum; aggregator.fedavg.mix.0.nnm.f=2",
            {"aggregator": {"fedavg": {"mix": [{"nnm": {"f": 2}}], "rule": "krum"}}},
        ),
        (
            {"aggregator": PIPELINE},
            "aggregator.rule=bucketing+krum",
            {"aggregator": {"mix": ["nnm", "bucketing"], "rule": "krum"}},
        ),
        ({}, "aggregator.per_block=true", {"aggregator": {"rule": {"flag": {}}, "per_block": True}}),
        (
            {"aggregator": "nnm+krum"},
            "aggregator.per_block=true; aggregator.rule.krum.select=3",
            {"aggregator": {"mix": ["nnm"], "rule": {"krum": {"select": 3}}, "per_block": True}},
        ),
        # Ordinary sections.
        ({"server": {"port": 1}}, "server.host=::1", {"server": {"port": 1, "host": "::1"}}),
        ({"server": None}, "server.port=5", {"server": {"port": 5}}),
        ({}, "optimizer.lr=1e-3", {"optimizer": {"lr": 0.001}}),
        ({}, "server.quorum=null", {"server": {"quorum": None}}),
        ({}, "output='a=b'", {"output": "a=b"}),
    ],
)
def test_an_assignment_replaces(settings, text, expected):
    assert overridden(settings, *text.split("; ")) == expected


def test_assignments_apply_in_order():
    assert overridden({}, "aggregator=krum", "aggregator.krum.f=1", "aggregator.krum.select=2") == {
        "aggregator": {"krum": {"f": 1, "select": 2}}
    }


def test_the_settings_of_the_file_are_not_changed():
    settings = {"aggregator": {"mix": ["nnm"], "rule": {"krum": {}}}}
    overridden(settings, "aggregator.rule.krum.f=1", "aggregator.mix.0=bucketing")
    assert settings == {"aggregator": {"mix": ["nnm"], "rule": {"krum": {}}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flag", "command line: should be key=value with a dotted key. Found 'flag'"),
        ("=3", "should be key=value"),
        ("a..b=3", "should be key=value"),
        ("--x=3", "should be key=value"),
        ("seed=", "seed: is given no value."),
        ("seed=[1", "seed, line 1, column 3: is not valid YAML"),
        ("seed.x=3", "seed: is a single value, so seed.x cannot be set. Found 1"),
        ("aggregator.median.f=1", "the aggregator is a pipeline of `mix` and `rule`"),
        (
            "aggregator.mix.4.nnm.f=1",
            "aggregator.mix: is a list of 1, so a number from 0 should follow. Found '4'",
        ),
        ("aggregator.mix.nnm.f=1", "a number from 0 should follow. Found 'nnm'"),
    ],
)
def test_what_cannot_be_assigned(text, said):
    with pytest.raises(ConfigError) as error:
        overridden({"seed": 1, "aggregator": PIPELINE}, text)
    assert said in str(error.value)


def test_every_malformed_argument_is_reported():
    with pytest.raises(ConfigError) as error:
        overridden({}, "flag", "seed=", "workers=3", "x=[")
    assert [problem.path for problem in error.value.problems] == [
        "command line",
        "seed",
        "x, line 1, column 2",
    ]


def test_the_environment_spells_dots_as_double_underscores():
    environ = {
        "VARANGIAN__SERVER__PORT": "5000",
        "VARANGIAN_SECRET": "x",
        "PATH": "/bin",
        "VARANGIAN__F": "1",
    }
    assert apply_overrides({}, from_environment(environ), GROUPS) == {"f": 1, "server": {"port": 5000}}


def test_one_variable_can_hold_several_settings_which_win_over_others():
    environ = {"VARANGIAN__F": "1", "VARANGIAN_SETTINGS": "f=2 model='{cnn: {}}' seed=3"}
    assert apply_overrides({}, from_environment(environ), GROUPS) == {
        "f": 2,
        "model": {"cnn": {}},
        "seed": 3,
    }
    assert from_environment({"VARANGIAN_SETTINGS": " "}) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("f=1 'seed=2", "no closing quotation"),
        ("f=1 --insecure", "no options"),
        ("run.yaml", "no configuration file"),
        ("--output=x", "no options"),
    ],
)
def test_what_else_stands_in_that_variable_is_refused(text, rule):
    with pytest.raises(ConfigError, match=f"VARANGIAN_SETTINGS: should be key=value.*{rule}"):
        from_environment({"VARANGIAN_SETTINGS": text})


def test_all_addresses_of_ipv6_need_no_quotes():
    assert Assignment.of("server.host=::").value == "::"
    (found,) = from_environment({"VARANGIAN__SERVER__HOST": "::"})
    assert found.value == "::"
