"""Names to objects, and what is said of a name or a field that is not there."""

import dataclasses
from typing import Any, Literal

import pytest

from varangian.registry import MISSING, ConfigError, Problem, Registry, suggestion


class Shape: ...


SHAPES: Registry[Shape] = Registry("shape")


@SHAPES.register("square", sides=4)
@SHAPES.register("polygon")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Polygon(Shape):
    """A shape with sides.

    And a second line.
    """

    sides: int
    length: float = 1.0
    colour: Literal["red", "green"] = "red"
    holes: tuple[float, ...] = ()
    name: str | None = None
    filled: bool = False

    def __post_init__(self) -> None:
        if self.sides < 3:
            raise ValueError(f"`sides` should be at least 3. Found {self.sides}.")


@SHAPES.register("point")
@dataclasses.dataclass(frozen=True)
class Point(Shape):
    pass


def problems(spec: object, **defaults: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        SHAPES.build(spec, "picture.shape", defaults)
    assert str(caught.value) == "\n".join(str(p) for p in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("point", Point()),
        ({"point": None}, Point()),
        ({"point": {}}, Point()),
        ({"polygon": {"sides": 5}}, Polygon(sides=5)),
        ("square", Polygon(sides=4)),
        ({"square": {"length": 2}}, Polygon(sides=4, length=2.0)),
        ({"square": {"sides": 5}}, Polygon(sides=5)),
        ({"square": {"holes": [1, 2.5]}}, Polygon(sides=4, holes=(1, 2.5))),
        ({"square": {"name": None, "colour": "green"}}, Polygon(sides=4, colour="green")),
    ],
)
def test_built(spec: object, wanted: Shape) -> None:
    found = SHAPES.build(spec, "shape")
    assert found == wanted
    assert type(getattr(found, "length", 0.0)) is float


def test_defaults_fill_only_fields_that_are_there_and_free() -> None:
    assert SHAPES.build("polygon", "shape", {"sides": 7, "f": 3}) == Polygon(sides=7)
    assert SHAPES.build({"polygon": {"sides": 5}}, "shape", {"sides": 7}) == Polygon(sides=5)
    assert SHAPES.build("square", "shape", {"sides": 7}) == Polygon(sides=4), "the name says more"


def test_unknown_name() -> None:
    assert problems("squar") == [
        "picture.shape: there is no shape of this name. Found 'squar'. Did you mean 'square'?"
    ]
    assert problems("Polygon") == [
        "picture.shape: there is no shape of this name. Found 'Polygon'. Did you mean 'polygon'?"
    ]
    assert problems({"triangle": {}}) == [
        "picture.shape: there is no shape of this name. Found 'triangle'. Known: point, polygon, square."
    ]


def test_unknown_field() -> None:
    assert problems({"square": {"lenght": 1}}) == [
        "picture.shape.square.lenght: there is no such field. Found 1. Did you mean 'length'?"
    ]
    assert problems({"point": {"sides": 1}}) == [
        "picture.shape.point.sides: there is no such field. Found 1."
    ]


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("sides", "four", "an integer"),
        ("sides", 4.0, "an integer"),
        ("sides", True, "an integer"),
        ("sides", None, "an integer"),
        ("length", "1", "a number"),
        ("length", True, "a number"),
        ("colour", "blue", "one of 'red', 'green'"),
        ("holes", 1.0, "a list (a number each)"),
        ("holes", ["a"], "a list (a number each)"),
        ("name", 3, "text or null"),
        ("filled", 1, "true or false"),
    ],
)
def test_wrong_type(field: str, value: Any, rule: str) -> None:
    assert problems({"square": {field: value}}) == [
        f"picture.shape.square.{field}: should be {rule}. Found {value!r}."
    ]


def test_required_field() -> None:
    assert problems("polygon") == ["picture.shape.polygon.sides: is required (an integer)."]


def test_what_the_class_refuses() -> None:
    assert problems({"polygon": {"sides": 2}}) == [
        "picture.shape.polygon: `sides` should be at least 3. Found 2."
    ]


def test_all_problems_at_once() -> None:
    found = problems({"polygon": {"colour": "blue", "edges": 3, "length": "long"}})
    assert [sentence.split(":")[0].rsplit(".", 1)[1] for sentence in found] == [
        "edges",
        "sides",
        "length",
        "colour",
    ]


@pytest.mark.parametrize("spec", [None, 3, [], ["square"], {}, {"square": {}, "point": {}}])
def test_neither_name_nor_mapping(spec: object) -> None:
    (sentence,) = problems(spec)
    assert "should be the name of a shape, or one name with its fields" in sentence
    assert sentence.endswith("Known: point, polygon, square.")


@pytest.mark.parametrize("fields", [3, "red", [1]])
def test_fields_that_are_no_mapping(fields: object) -> None:
    assert problems({"square": fields}) == [
        f"picture.shape.square: should be a mapping of fields to values. Found {fields!r}."
    ]


def test_what_is_written_is_not_changed() -> None:
    spec = {"square": {"holes": [1]}}
    SHAPES.build(spec, "shape", {"length": 3.0})
    assert spec == {"square": {"holes": [1]}}


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="shape 'point' is registered twice"):
        SHAPES.register("point")(Point)


def test_listing() -> None:
    assert list(SHAPES) == ["point", "polygon", "square"]
    assert "square" in SHAPES
    assert "circle" not in SHAPES
    assert SHAPES.summary("square") == "A shape with sides."
    cls, preset = SHAPES.entry("square")
    assert (cls, preset) == (Polygon, {"sides": 4})


def test_fields_of_a_name() -> None:
    required = {name: [f.name for f in SHAPES.fields(name) if f.default is MISSING] for name in SHAPES}
    assert required == {"point": [], "polygon": ["sides"], "square": []}


@pytest.mark.parametrize("shape", [Point(), Polygon(sides=4), Polygon(sides=5, holes=(1.0, 2.0))])
def test_there_and_back(shape: Shape) -> None:
    assert SHAPES.build(SHAPES.spec(shape), "shape") == shape


def test_back_to_the_name_that_says_most() -> None:
    assert list(SHAPES.spec(Polygon(sides=4))) == ["square"]
    assert list(SHAPES.spec(Polygon(sides=5))) == ["polygon"]


def test_problem_at_the_top() -> None:
    assert str(Problem("", "should be a mapping")) == "(top level): should be a mapping."
    assert str(Problem("a", "is not there", None, "Add it.")) == "a: is not there. Found None. Add it."
    assert str(Problem("a", "Did you mean 'b'?")) == "a: Did you mean 'b'?"


def test_suggestion_when_nothing_is_known() -> None:
    assert suggestion("x", []) == ""
