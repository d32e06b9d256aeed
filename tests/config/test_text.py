import math

import pytest
import yaml

from varangian.config.text import dump, parse, read
from varangian.registry import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5.", 5.0),
        (".5", 0.5),
        ("+3", 3),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("::1", "::1"),
        ("[nnm, {krum: {f: 2}}]", ["nnm", {"krum": {"f": 2}}]),
    ],
)
def test_values_are_what_people_expect(text, value):
    found = parse(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_a_number():
    assert math.isnan(parse(".nan", "here"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a: 1\nb: 2\na: 3",
            "line 3, column 1: is not valid YAML: the key 'a' stands twice, first in line 1",
        ),
        ("x: {f: 1, f: 2}", "the key 'f' stands twice"),
        ("[a, b", "line 1, column 6"),
        ("a: b: c", "mapping values are not allowed here"),
        ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("? [1]\n: 2", "unhashable key"),
        ("!!int many", "is not valid YAML"),
        ("a: \x07", "unacceptable character"),
        ("1: x", "keys should be text. Found 1"),
        ("[" * 40 + "]" * 40, "should nest at most 32 levels"),
        ("[" * 20_000, "should nest at most 32 levels"),
        ("a: &a [*a]", "should nest at most 32 levels"),
    ],
)
def test_what_is_not_a_configuration_is_one_error(text, said):
    with pytest.raises(ConfigError, match=r"\A.*\Z") as error:
        parse(text, "run.yaml")
    assert said in str(error.value)


def test_an_alias_is_a_copy():
    value = parse("{a: &x {b: 1}, c: *x}", "here")
    value["a"]["b"] = 2
    assert value["c"]["b"] == 1


@pytest.mark.parametrize(
    "value",
    [
        "1e-3",
        "no",
        "true",
        "~",
        "",
        "010",
        "0x1",
        "1.5",
        "a: b",
        "ünï\n",
        "<<",
        "=",
        ".inf",
        "12:30",
        "2020-01-01",
    ],
)
def test_text_stays_text(value):
    assert parse(dump({"a": value}), "here") == {"a": value}
    assert yaml.safe_load(dump({"a": value})) == {"a": value}, "another reader sees the same"


@pytest.mark.parametrize("value", [1e-5, 1e300, 1e22, -0.0, 1, None, True, math.inf, [1, 2.5], {"k": None}])
def test_values_survive_a_round_trip(value):
    assert parse(dump({"a": value}), "here") == {"a": value}


def test_a_file_is_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\nserver:\n")
    assert read(path) == {"seed": 3, "server": None}


def test_an_empty_file_has_no_settings(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing yet\n")
    assert read(path) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "should be UTF-8"),
        (b"- a", "should be a mapping of settings"),
        (b"a: [", "run.yaml, line 1"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, content, said):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: the configuration cannot be read: no such file"):
        read(tmp_path / "nowhere.yaml")
