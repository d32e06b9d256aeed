"""`aggregator: {fedlaavg: {...}}`: who takes part and the rule, written in one place.

What is meant is `participation: {fedlaavg: {...}}` with the rule as `aggregator`; problems are told in the
words of the user.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varangian.aggregators import MIXINGS, RULES
from varangian.aggregators.spec import USUAL, expanded
from varangian.config.schema import JsonSchema, below, with_fields
from varangian.registry import Problem, join, suggestion
from varangian.server.participation import PARTICIPATION

TOGETHER = ("asap", "fedavg", "fedlaavg")
"""The participations that can be written with their rule."""
RULE = "mean"
"""Theirs, where none is written."""
PIPELINE = ("mix", "rule")
"""The keys of an aggregator that is more than one rule."""


@dataclass(frozen=True)
class Expanded:
    """Settings as the tree has them, and what was written."""

    settings: Mapping[str, Any]
    name: str | None = None
    """The participation that was written as an aggregator."""
    problems: tuple[Problem, ...] = ()

    @property
    def invalid(self) -> frozenset[str]:
        """Top-level settings that have a problem of their own by now."""
        return frozenset({"aggregator", "participation"}) if self.problems else frozenset()

    def as_written(self, problem: Problem) -> Problem:
        """The problem where the user has it."""
        hint = _of_another_kind(problem) if problem.path.partition(".")[0] == "aggregator" else problem.hint
        return dataclasses.replace(
            problem,
            path=self._path(problem.path),
            rule=self._said(problem.rule),
            hint=self._said(hint),
            fixes=tuple(dataclasses.replace(fix, path=self._path(fix.path)) for fix in problem.fixes),
        )

    def _path(self, path: str) -> str:
        top, _, below = path.partition(".")
        if top == "aggregator" and self.name is not None:
            return join(f"aggregator.{self.name}", below) if below else f"aggregator.{self.name}"
        if top == "participation" and self.name is not None:
            return f"aggregator.{below or self.name}"
        return path

    def _said(self, sentence: str) -> str:
        written = f"participation.{self.name}", f"aggregator.{self.name}"
        return sentence if self.name is None else sentence.replace(*written)


def expand_shorthand(settings: Mapping[str, Any]) -> Expanded:
    """What is meant by settings."""
    written = settings.get("aggregator")
    name = _name(written)
    if name is None:
        return Expanded(settings)
    problems: list[Problem] = []
    if "participation" in settings:
        problems.append(_twice(settings["participation"], name))
    fields, found = _fields(written, name)
    problems += found
    inner = {key: value for key, value in fields.items() if key in PIPELINE}
    rest = {key: value for key, value in fields.items() if key not in PIPELINE}
    meant = {"aggregator": {"rule": RULE} | inner, "participation": {name: rest}}
    return Expanded({**settings, **meant}, name, tuple(problems))


def long_form(aggregator: Any) -> Any:
    """An aggregator without `+`, so that its parts can be changed one by one."""
    name = _name(aggregator)
    if name is None or isinstance(aggregator, str) or not isinstance(aggregator[name], Mapping):
        return expanded(aggregator)
    return {**aggregator, name: expanded(aggregator[name])}


def groups() -> dict[str, str | None]:
    """Paths in which a name stands for a group."""
    nested = {join("aggregator", path): name for path, name in below(PARTICIPATION).items()}
    rules = {f"aggregator.{name}.rule": RULE for name in TOGETHER}
    return rules | {path: name for path, name in nested.items() if path.split(".")[1] in TOGETHER}


def schemas(pipeline: JsonSchema) -> list[JsonSchema]:
    """What may stand as `aggregator`, given the properties `mix` and `rule` of a pipeline."""
    names = {"enum": [*TOGETHER], "description": "The name of a participation, with the mean."}
    return [names, *(_schema(name, pipeline) for name in TOGETHER)]


def _schema(name: str, pipeline: JsonSchema) -> JsonSchema:
    cls, _ = PARTICIPATION.entry(name)
    fields = with_fields(cls, PARTICIPATION.fields(name))
    inside = {**fields, "type": ["object", "null"], "properties": {**fields["properties"], **pipeline}}
    return {
        "type": "object",
        "title": name,
        "properties": {name: inside},
        "required": [name],
        "additionalProperties": False,
    }


def _name(written: Any) -> str | None:
    if isinstance(written, str):
        return written if written in TOGETHER else None
    if isinstance(written, Mapping):
        return next((name for name in TOGETHER if name in written), None)
    return None


def _fields(written: Any, name: str) -> tuple[Mapping[str, Any], list[Problem]]:
    """The settings under the name, without those that are wrong."""
    if isinstance(written, str):
        return {}, []
    if len(written) > 1:
        rule = f"should be {name} alone: `mix` and `rule` stand among its fields"
        return {}, [Problem("aggregator", rule, [*written])]
    fields, here = written[name], f"aggregator.{name}"
    if fields is None:
        return {}, []
    if not isinstance(fields, Mapping):
        return {}, [Problem(here, "should be a mapping of fields to values", fields)]
    known = [*(field.name for field in PARTICIPATION.fields(name)), *PIPELINE]
    unknown = [key for key in fields if key not in known]
    problems = [
        Problem(join(here, key), "there is no such field", fields[key], suggestion(str(key), known))
        for key in unknown
    ]
    return {key: value for key, value in fields.items() if key in known}, problems


def _twice(value: Any, name: str) -> Problem:
    rule = f"is chosen by aggregator.{name} already"
    hint = f"Leave it out, or write participation={name} and only the rule as aggregator."
    return Problem("participation", rule, value, hint)


def _of_another_kind(problem: Problem) -> str:
    """The hint when the name of a participation stands where one of a rule should."""
    name = problem.value
    no_rule = problem.rule.startswith("there is no aggregator")
    if not isinstance(name, str) or not (no_rule or problem.rule.startswith("there is no mixing")):
        return problem.hint
    if name in TOGETHER:
        return f"{name!r} is a participation: write aggregator={{{name}: {{rule: {USUAL}}}}}."
    if name in PARTICIPATION:
        return f"{name!r} is a participation: write participation={name}, and a rule as aggregator."
    if no_rule and problem.path == "aggregator" and name not in MIXINGS:
        return suggestion(name, [*RULES, *TOGETHER])
    return problem.hint
