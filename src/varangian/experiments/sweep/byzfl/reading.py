"""Reading a configuration of ByzFL's benchmark: its sections, and problems with their paths.

Almost every value may be a list, and each entry is then run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from varangian.experiments.sweep.byzfl.axes import without_repetitions
from varangian.registry import ConfigError, Problem, join, suggestion

PARTS = ("aggregator", "pre_aggregators", "attack")
"""Parts of the file that are no section of values, but names with parameters."""
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "benchmark_config": (
        "training_algorithm",
        "nb_steps",
        "device",
        "training_seed",
        "nb_training_seeds",
        "nb_workers",
        "nb_honest_clients",
        "f",
        "tolerated_f",
        "set_honest_clients_as_clients",
        "size_train_set",
        "data_distribution_seed",
        "nb_data_distribution_seeds",
        "data_distribution",
    ),
    "model": (
        "name",
        "dataset_name",
        "nb_labels",
        "loss",
        "learning_rate",
        "learning_rate_decay",
        "milestones",
        "optimizer_name",
    ),
    "honest_clients": ("momentum", "weight_decay", "batch_size"),
    "evaluation_and_results": (
        "evaluation_delta",
        "batch_size_evaluation",
        "evaluate_on_test",
        "store_per_client_metrics",
        "store_models",
        "data_folder",
        "results_directory",
        "display",
    ),
}
"""The settings that ByzFL 0.0.11 reads, and `display`, which changes nothing."""
MOVED: Mapping[str, str] = {
    "benchmark_config.nb_byz": "benchmark_config.f",
    "benchmark_config.declared_nb_byz": "benchmark_config.tolerated_f",
    "benchmark_config.fix_workers_as_honest": "benchmark_config.set_honest_clients_as_clients",
    "honest_nodes": "honest_clients",
    "server": "model, benchmark_config and evaluation_and_results",
}
"""Names of earlier versions, with those of 0.0.11."""


@dataclass(frozen=True)
class Kind:
    """A kind of value: its words in a message, and a test."""

    words: str
    fits: Callable[[Any], bool]


def _whole(least: int) -> Kind:
    return Kind(f"a whole number from {least}", lambda v: type(v) is int and v >= least)


def _number(words: str, fits: Callable[[float], bool]) -> Kind:
    return Kind(words, lambda v: type(v) in (int, float) and math.isfinite(v) and fits(v))


COUNT, FROM_ZERO = _whole(1), _whole(0)
POSITIVE = _number("a positive number", lambda v: v > 0)
NOT_NEGATIVE = _number("a number from 0", lambda v: v >= 0)
NUMBER = _number("a number", lambda v: True)
SHARE = _number("a number above 0, at most 1", lambda v: 0 < v <= 1)
SIMILARITY = _number("a number from 0 to 1", lambda v: 0 <= v <= 1)
MOMENTUM = _number("a number from 0, below 1", lambda v: 0 <= v < 1)
TRUTH = Kind("true or false", lambda v: type(v) is bool)
TEXT = Kind("text", lambda v: isinstance(v, str) and bool(v))


@dataclass(frozen=True)
class Named:
    """A name with parameters, each with one value."""

    name: str
    parameters: Mapping[str, Any]
    path: str


class Document:
    """The content of a file, with the problems that were found in it and notes about its translation."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.problems = list[Problem]()
        self.notes = list[str]()
        self._content = content
        self._check_keys()

    def say(self, path: str, rule: str, value: Any, hint: str = "") -> None:
        """Take a problem, once."""
        problem = Problem(path, rule, value, hint)
        if problem not in self.problems:
            self.problems.append(problem)

    def note(self, sentence: str) -> None:
        """Take a sentence about what is different here, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def find(self, path: str, default: Any = None) -> Any:
        """The value at a path; the default where it or a section is missing."""
        node: Any = self._content
        for key in path.split("."):
            if not isinstance(node, Mapping) or key not in node:
                return default
            node = node[key]
        return node

    def values(self, path: str, kind: Kind, default: Any) -> list[Any]:
        """The values of a setting: those of a list, or the one that stands there; never none.

        Values that do not fit are problems, and left out.
        """
        found = self.find(path, default)
        if found == []:
            self.say(path, "should have at least one value", found)
            return [default]
        given = found if isinstance(found, list) else [found]
        for number, value in enumerate(given):
            if not kind.fits(value):
                here = join(path, number) if isinstance(found, list) else path
                self.say(here, f"should be {kind.words}", value)
        fitting = [value for value in given if kind.fits(value)]
        return without_repetitions(fitting) or [default]

    def one(self, path: str, kind: Kind, default: Any) -> Any:
        """The value of a setting that has one."""
        found = self.find(path, default)
        if not kind.fits(found):
            self.say(path, f"should be {kind.words}", found)
            return default
        return found

    def choices(self, path: str, known: Sequence[str], default: str) -> list[str]:
        """The names at a path, of those that are known."""
        found = self.values(path, TEXT, default)
        for name in found:
            if name not in known:
                self.say(path, "is no name of ByzFL's that is known here", name, suggestion(name, known))
        return [name for name in found if name in known]

    def named(self, path: str, default: str) -> list[Named]:
        """The names with parameters at a path; a parameter with several values makes several of them."""
        found = self.find(path, {"name": default})
        if found == []:
            self.say(path, "should have at least one entry", found)
        given = found if isinstance(found, list) else [found]
        return [
            one
            for number, entry in enumerate(given)
            for one in self._entry(entry, join(path, number) if isinstance(found, list) else path)
        ]

    def pipelines(self, path: str) -> list[list[Named]]:
        """The lists of names with parameters at a path; one list stands for itself."""
        found = self.find(path, [])
        if not isinstance(found, list):
            self.say(path, "should be a list of pre-aggregators, or a list of such lists", found)
            return [[]]
        nested = bool(found) and all(isinstance(entry, list) for entry in found)
        many = found if nested else [found]
        pipelines = list[list[Named]]()
        for row, pipeline in enumerate(many):
            here = join(path, row) if nested else path
            steps = [[*self._entry(entry, join(here, column))] for column, entry in enumerate(pipeline)]
            pipelines += map(list, product(*steps))
        return pipelines

    def _entry(self, entry: Any, path: str) -> Iterator[Named]:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            self.say(path, "should be a mapping with a `name`", entry)
            return
        allowed = (
            ("name", "distribution_parameter") if "data_distribution" in path else ("name", "parameters")
        )
        for key in entry:
            if key not in allowed:
                self.say(join(path, key), "is no part of an entry", entry[key], suggestion(key, allowed))
        given = entry.get("parameters", {})
        if not isinstance(given, Mapping):
            self.say(join(path, "parameters"), "should be a mapping", given)
            return
        if "distribution_parameter" in entry:
            given = {"distribution_parameter": entry["distribution_parameter"]}
        lists = [value if isinstance(value, list) else [value] for value in given.values()]
        for values in product(*lists):
            yield Named(entry["name"], dict(zip(given, values, strict=True)), path)

    def _check_keys(self) -> None:
        if not any(name in self._content for name in SECTIONS):
            rule = f"is no configuration of ByzFL: it has none of {', '.join(SECTIONS)}"
            hint = "A grid file of Varangian stands without --from-byzfl."
            self.problems.append(Problem("", rule, hint=hint))
            return
        for section, found in self._content.items():
            known = SECTIONS.get(section)
            if section in PARTS:
                continue
            if known is None:
                self._unknown(section, found, [*SECTIONS, *PARTS])
            elif not isinstance(found, Mapping):
                self.say(section, "should be a mapping of settings to values", found)
            else:
                for key in found:
                    if key not in known:
                        self._unknown(join(section, key), found[key], known)

    def _unknown(self, path: str, value: Any, known: Sequence[str]) -> None:
        hint = suggestion(path.rpartition(".")[2], known)
        if path in MOVED:
            hint = f"ByzFL 0.0.11 has it as {MOVED[path]}."
        self.say(path, "there is no such setting of ByzFL 0.0.11", value, hint)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        ConfigError: no such file, not JSON, a key that stands twice, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([Problem(str(path), f"the configuration cannot be read: {reason}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), "the configuration should be UTF-8 text")]) from error
    twice = list[Problem]()

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        again = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        twice.extend(Problem(str(path), "a key should stand once in its mapping", key) for key in again)
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        before = text[: error.pos].rstrip()
        hint = "A comma before } or ] is not allowed." if before.endswith(",") else ""
        reason = error.msg[0].lower() + error.msg[1:]
        raise ConfigError([Problem(where, f"is not valid JSON: {reason}", hint=hint)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(str(path), "should nest less deeply")]) from error
    if not isinstance(content, dict):
        raise ConfigError([Problem(str(path), "should be a mapping of sections to settings", content)])
    if twice:
        raise ConfigError(twice)
    return content
