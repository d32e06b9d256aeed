"""The setting `aggregator`: a rule, mixings and a rule, or a participation written with its rule.

`aggregators/spec.py` reads the first two. The third means a participation and an aggregator: `{fedavg:
{participants: 5, rule: krum}}` is `participation: {fedavg: {participants: 5}}` and `aggregator: krum`.
Problems name the paths that the user wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from varangian.aggregators import MIXINGS, RULES
from varangian.aggregators.spec import CHAIN, COMBINATIONS, USUAL, expanded, is_chain
from varangian.config.schema import OWN, JsonSchema, fields_schema, names_schema, nested_groups
from varangian.registry import ConfigError, Problem, join, suggestion
from varangian.server.participation import PARTICIPATION

RULE = "mean"
"""The rule of a participation that is written without one."""


def written_with_rule() -> tuple[str, ...]:
    """The participations that can stand as `aggregator`, with their rule."""
    return tuple(name for name in PARTICIPATION if PARTICIPATION.entry(name)[0].stands_as_aggregator)


@dataclass(frozen=True)
class Expanded:
    """Settings in their long form, with what is needed to name the paths that the user wrote."""

    settings: Mapping[str, Any]
    name: str | None = None
    """The participation that was written as an aggregator, if one was."""
    problems: tuple[Problem, ...] = ()

    @property
    def invalid(self) -> frozenset[str]:
        """Top-level settings that have a problem already."""
        return frozenset({"aggregator", "participation"}) if self.problems else frozenset()

    def as_written(self, problem: Problem) -> Problem:
        """The problem at the path that the user wrote."""
        hint = _hint_of_kind(problem) if problem.path.partition(".")[0] == "aggregator" else problem.hint
        return dataclasses.replace(
            problem,
            path=self._written_path(problem.path),
            rule=self._rephrase(problem.rule),
            hint=self._rephrase(hint),
            fixes=tuple(
                dataclasses.replace(fix, path=self._written_path(fix.path)) for fix in problem.fixes
            ),
        )

    def _written_path(self, path: str) -> str:
        top, _, below = path.partition(".")
        if top == "aggregator" and self.name is not None:
            return join(f"aggregator.{self.name}", below) if below else f"aggregator.{self.name}"
        if top == "participation" and self.name is not None:
            return f"aggregator.{below or self.name}"
        return path

    def _rephrase(self, sentence: str) -> str:
        written = f"participation.{self.name}", f"aggregator.{self.name}"
        return sentence if self.name is None else sentence.replace(*written)


def expand_shorthand(settings: Mapping[str, Any]) -> Expanded:
    """The settings with a participation and an aggregator in place of one that is written for both."""
    written = settings.get("aggregator")
    name = _participation_name(written)
    if name is None:
        return Expanded(settings)
    problems: list[Problem] = []
    if "participation" in settings:
        problems.append(_chosen_twice(settings["participation"], name))
    fields, found = _split_fields(written, name)
    problems += found
    inner = {key: value for key, value in fields.items() if key in CHAIN}
    rest = {key: value for key, value in fields.items() if key not in CHAIN}
    long = {"aggregator": {"rule": RULE} | inner, "participation": {name: rest}}
    return Expanded({**settings, **long}, name, tuple(problems))


def long_form(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with an aggregator without `+`, so that its parts can be changed one by one."""
    if "aggregator" not in settings:
        return dict(settings)
    written = settings["aggregator"]
    name = _participation_name(written)
    if name is None or isinstance(written, str) or not isinstance(written[name], Mapping):
        return {**settings, "aggregator": expanded(written)}
    return {**settings, "aggregator": {**written, name: expanded(written[name])}}


def open_aggregator(aggregator: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping that an assignment to `aggregator.<key>` changes: the aggregator, or one in its place.

    Raises:
        ConfigError: the key belongs below a part of it.
    """
    path = join("aggregator", key)
    if key in CHAIN:
        if name := _participation_name(aggregator):
            rule = f"the aggregator is {name}, with `mix`, `rule` and `per_block` among its fields"
            raise ConfigError([Problem(path, rule, hint=f"Write aggregator.{name}.{key}.")])
        return aggregator if is_chain(aggregator) else {"rule": aggregator}
    if is_chain(aggregator):
        after = f"Write aggregator.rule.{key} for the rule after the mixings"
        hint = f"{after}, or aggregator={key} for it alone."
        if key in written_with_rule():
            hint = f"Write participation.{key} beside them."
        raise ConfigError([Problem(path, "the aggregator is a pipeline of `mix` and `rule`", hint=hint)])
    return aggregator if key in aggregator else {}


def aggregator_groups() -> dict[str, str | None]:
    """Paths where a name stands for a group, with the name by default; `*` stands for a number."""
    found: dict[str, str | None] = {"aggregator.rule": None, "aggregator.mix.*": None}
    names = written_with_rule()
    for name in names:
        found |= {f"aggregator.{name}.rule": RULE, f"aggregator.{name}.mix.*": None}
    all_nested = nested_groups(PARTICIPATION).items()
    nested = {path: name for path, name in all_nested if path.split(".")[0] in names}
    return found | {join("aggregator", path): name for path, name in nested.items()}


def aggregator_schema() -> JsonSchema:
    """The schema of the setting `aggregator`."""
    names = written_with_rule()
    rules, joined = names_schema(RULES), _joined_schema()
    mix = {
        "type": "array",
        "items": {"anyOf": names_schema(MIXINGS)},
        "description": "Mixings before the rule, in order.",
    }
    meaning = ", ".join(f"{name} is {parts}" for name, parts in COMBINATIONS.items())
    named = {"enum": [*COMBINATIONS], "description": f"A combination: {meaning}."}
    per_block = {
        "type": "boolean",
        "default": False,
        "description": "Apply mixings and rule to each parameter tensor of the model by itself.",
    }
    rule = {"anyOf": [*rules, named, joined]}
    properties: JsonSchema = {"mix": mix, "rule": rule, "per_block": per_block}
    pipeline = {
        "type": "object",
        "title": "pipeline",
        "properties": properties,
        "required": ["rule"],
        "additionalProperties": False,
    }
    alone = {"enum": [*names], "description": "The name of a participation, with the mean."}
    return {
        "anyOf": [*rules, named, joined, pipeline, alone, *(_schema(name, properties) for name in names)]
    }


def _joined_schema() -> JsonSchema:
    """The schema of `nnm+krum`."""
    mixing, rule = ("|".join(names) for names in ([*MIXINGS, OWN], [*RULES, *COMBINATIONS, OWN]))
    return {
        "type": "string",
        "pattern": rf"^\s*(({mixing})\s*\+\s*)+({rule})\s*$",
        "description": "Mixings and then a rule, by name, joined by +.",
    }


def _schema(name: str, pipeline: JsonSchema) -> JsonSchema:
    cls, _ = PARTICIPATION.entry(name)
    fields = fields_schema(cls, PARTICIPATION.fields(name))
    inside = {**fields, "type": ["object", "null"], "properties": {**fields["properties"], **pipeline}}
    return {
        "type": "object",
        "title": name,
        "properties": {name: inside},
        "required": [name],
        "additionalProperties": False,
    }


def _participation_name(written: Any) -> str | None:
    """The participation that is written as an aggregator."""
    names = written_with_rule()
    if isinstance(written, str):
        return written if written in names else None
    if isinstance(written, Mapping):
        return next((name for name in names if name in written), None)
    return None


def _split_fields(written: Any, name: str) -> tuple[Mapping[str, Any], list[Problem]]:
    """The settings under the name, without those that are wrong."""
    if isinstance(written, str):
        return {}, []
    if len(written) > 1:
        rule = f"should be {name} alone: `mix`, `rule` and `per_block` stand among its fields"
        return {}, [Problem("aggregator", rule, [*written])]
    fields, here = written[name], f"aggregator.{name}"
    if fields is None:
        return {}, []
    if not isinstance(fields, Mapping):
        return {}, [Problem(here, "should be a mapping of fields to values", fields)]
    known = [*(field.name for field in PARTICIPATION.fields(name)), *CHAIN]
    unknown = [key for key in fields if key not in known]
    problems = [
        Problem(join(here, key), "there is no such field", fields[key], suggestion(str(key), known))
        for key in unknown
    ]
    return {key: value for key, value in fields.items() if key in known}, problems


def _chosen_twice(value: Any, name: str) -> Problem:
    rule = f"is chosen by aggregator.{name} already"
    hint = f"Leave it out, or write participation={name} and only the rule as aggregator."
    return Problem("participation", rule, value, hint)


def _hint_of_kind(problem: Problem) -> str:
    """The hint when the name of a participation stands where one of a rule should."""
    name = problem.value
    no_rule = problem.rule.startswith("there is no aggregator")
    if not isinstance(name, str) or not (no_rule or problem.rule.startswith("there is no mixing")):
        return problem.hint
    if name in written_with_rule():
        return f"{name!r} is a participation: write aggregator={{{name}: {{rule: {USUAL}}}}}."
    if name in PARTICIPATION:
        return f"{name!r} is a participation: write participation={name}, and a rule as aggregator."
    if no_rule and problem.path == "aggregator" and name not in MIXINGS and "." not in name:
        return suggestion(name, [*RULES, *COMBINATIONS, *written_with_rule()])
    return problem.hint
