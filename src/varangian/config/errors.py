"""Validation errors of pydantic as problems of a configuration, with the path and a suggestion."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from varangian.registry import NOTHING, ConfigError, Problem, join, suggestion

_RULES = {
    "extra_forbidden": "there is no such setting",
    "missing": "is required",
    "model_type": "should be a mapping of settings to values",
    "bool_type": "should be true or false",
    "int_type": "should be an integer",
    "float_type": "should be a number",
    "string_type": "should be text",
}


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem in `error`, with a did-you-mean from the fields of `model`."""
    return [problem for details in error.errors() for problem in _problems(details, model)]


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The models inside of a model, by field name."""
    return {
        name: annotation
        for name, field in model.model_fields.items()
        for annotation in (
            get_args(field.annotation) or (field.annotation,)
        )  # of `Section | None` the first
        if isinstance(annotation, type) and issubclass(annotation, BaseModel)
    }


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The dotted paths of all settings."""
    below = sections(model)
    for name, field in model.model_fields.items():
        here = join(path, name)
        settings = [join(here, inner) for mark in field.metadata for inner in getattr(mark, "settings", ())]
        if name in below:
            yield from leaves(below[name], here)
        elif settings:
            yield from settings
        else:
            yield here


def _problems(details: ErrorDetails, model: type[BaseModel]) -> Iterator[Problem]:
    path = ".".join(map(str, details["loc"]))
    inner = _context(details).get("error")
    if isinstance(inner, ConfigError):
        for problem in inner.problems:
            yield _with_hint(problem.below(path), model)
        return
    kind = details["type"]
    rule = _RULES.get(kind) or (str(inner) if inner else details["msg"]).removeprefix("Input ")
    value: Any = NOTHING if kind == "missing" or inner else details["input"]
    yield Problem(path, rule.rstrip("."), value, _hint(details, model))


def _with_hint(problem: Problem, model: type[BaseModel]) -> Problem:
    """The problem of an object; a setting that it has not may be one of another part."""
    if problem.rule != _RULES["extra_forbidden"] or problem.path in leaves(model):
        return problem
    hint = _suggest_elsewhere(problem.path.rpartition(".")[2], model)
    return dataclasses.replace(problem, hint=hint or problem.hint)


def _hint(details: ErrorDetails, model: type[BaseModel]) -> str:
    value = details["input"]
    if details["type"] == "extra_forbidden":
        parts = [str(part) for part in value] if isinstance(value, dict) else []
        return _known_setting(details["loc"], parts, model)
    if details["type"] == "literal_error" and isinstance(value, str):
        expected = str(_context(details)["expected"]).replace(" or ", ",")
        names = [part.strip(" '") for part in expected.split(",")]
        near = suggestion(value, names)
        return near if near.startswith("Did") else ""
    return ""


def _context(details: ErrorDetails) -> dict[str, Any]:
    return details.get("ctx", {})


def _known_setting(loc: Sequence[str | int], parts: Sequence[str], model: type[BaseModel]) -> str:
    """The setting that may have been meant by one that there is not, or by the `parts` below it."""
    *parents, key = map(str, loc)
    here = model
    for parent in parents:
        here = sections(here)[parent]
    inside = [hint for part in parts if (hint := _suggest_elsewhere(part, model))]
    return " ".join(inside) or _suggest_elsewhere(key, model) or suggestion(key, here.model_fields)


def _suggest_elsewhere(key: str, model: type[BaseModel]) -> str:
    same = [repr(path) for path in leaves(model) if path.rpartition(".")[2] == key.lower()]
    return f"Did you mean {' or '.join(same)}?" if same else ""
