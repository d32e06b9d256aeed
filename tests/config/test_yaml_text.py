import contextlib
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from varangian.config.yaml_text import dump, parse, read
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


TAGS = [f"!!{kind} " for kind in ("int", "float", "bool", "null", "str", "seq", "map", "set", "binary")]
PARTS = [*"[]{},:&*!?-<|>'\\\"\n #x9~", "&a", "*a", "<<", "!!", "- ", ": ", *TAGS]
WIDE = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
BOMB = WIDE + "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i}, ' * 9}]\n" for i in range(200))
"""Nine times as many values in each line: without a bound there is no memory for the tenth."""


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
        ("{a: " * 40, "column 130: is not valid YAML: should nest at most 32 levels"),
        ("a: &a [*a]", "line 1, column 8: is not valid YAML: an alias should not stand inside"),
        ("".join(f"- &{i} [*{i - 1}]\n" if i else "- &0 x\n" for i in range(40)), "line 33, column 8"),
        (BOMB, "line 5, column 5: is not valid YAML: should have at most 50000 values, those that"),
        (BOMB.replace("[", "{<<: [").replace("]", "]}"), "should have at most 50000 values"),
        ("[" + "*a, " * 9 + "]", "found undefined alias"),
        ("x" * 600_000, "run.yaml: should have at most 524288 characters."),
        ("a: " + "9" * 5000, "line 1, column 4: is not valid YAML: should be a whole number of at most 40"),
        ("a: 0x" + "f" * 5000, "should be a whole number of at most 40 digits"),
        ("a: ." + "9" * 5000, "should be a number of at most 40 digits"),
        ("!!float 1:1:1", "should be a number"),
        ("!!bool x", "should be true or false"),
        ("!!timestamp x", "could not determine a constructor"),
        ("!!binary eA==", "could not determine a constructor"),
        ("!!map x", "expected a mapping node"),
    ],
)
def test_what_is_not_a_configuration_is_one_error(text, said):
    with pytest.raises(ConfigError, match=r"\A.*\Z") as error:
        parse(text, "run.yaml")
    assert said in str(error.value)


@given(st.lists(st.sampled_from(PARTS), max_size=25))
def test_any_text_is_a_value_or_one_error(parts):
    with contextlib.suppress(ConfigError):
        parse("".join(parts), "run.yaml")


def test_anchors_and_merges_work():
    text = "a: &a {x: 1, y: 3}\np: {q: &b {<<: *a, x: 2}}\nc: {<<: *b, z: *a}"
    assert parse(text, "here")["c"] == {"x": 2, "y": 3, "z": {"x": 1, "y": 3}}


def test_an_endless_file_is_one_error():
    with pytest.raises(ConfigError, match="at most 524288 characters"):
        read(Path("/dev/zero"))


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
