"""The command that makes a run again, from the settings that differ from their defaults."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

from varangian.config import RunConfig, load
from varangian.config.identity import with_effect
from varangian.config.yaml_text import dump
from varangian.experiments.results.labels import flatten, is_named
from varangian.registry import ConfigError


def command_of(config: Mapping[str, Any]) -> str | None:
    """`varangian run aggregator=krum ...`, for a shell; None if no settings give this configuration.

    Such is the case of a run of another version, whose defaults were others.
    """
    known = dict(config)
    seed, output = known.pop("seed", None), known.pop("output", None)
    del output  # where the run lies does not change it
    settings = _settings(json.dumps(known, sort_keys=True))
    if settings is None:
        return None
    if seed != _defaults().get("seed"):
        settings = (*settings, f"seed={_flow(seed)}")
    return shlex.join(["varangian", "run", *settings])


@cache
def _settings(text: str) -> tuple[str, ...] | None:
    """The settings that make a configuration, which is given as JSON without seed and output."""
    wanted = cast("dict[str, Any]", json.loads(text))
    defaults, f = _flat_defaults(), wanted.get("f")
    changed = {path: value for path, value in flatten(with_effect(wanted)) if defaults.get(path) != value}
    texts = {path: _text(path, json.dumps(value), f) for path, value in changed.items()}
    return tuple(f"{path}={text}" for path, text in texts.items()) if _makes(texts, wanted) else None


@cache
def _text(path: str, value: str, f: Any) -> str:
    """A value, given as JSON, as it is typed: a name alone if that stands for it in a run with this f."""
    wanted = json.loads(value)
    short = _short(wanted)
    made = _load({"f": _flow(f), path: short})
    exact = made is not None and dict(flatten(made.resolved())).get(path) == wanted
    return short if exact else _flow(wanted)


_KNOWN = set[tuple[frozenset[str], str]]()
"""Sets of settings that are known to make their configurations, and the rest of these."""


def _makes(texts: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    """Whether these settings make the configuration.

    Each value was tried by itself, so one combination of the same settings tells for the others.
    """
    rest = {path: value for path, value in flatten(wanted) if path not in texts}
    key = frozenset(texts), json.dumps(rest, sort_keys=True)
    if key not in _KNOWN:
        made = _load(texts)
        if made is None or not _agrees(made.resolved(), wanted):
            return False
        _KNOWN.add(key)
    return True


@cache
def _flat_defaults() -> dict[str, Any]:
    return dict(flatten(_defaults()))


@cache
def _defaults() -> dict[str, Any]:
    return load(None, []).resolved()


def _load(settings: Mapping[str, str]) -> RunConfig | None:
    try:
        return load(None, [f"{path}={value}" for path, value in settings.items()], whole=False)
    except ConfigError:
        return None


def _agrees(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every setting is as it is wanted; one that is not mentioned is newer, and at its default."""
    known = dict(flatten(made))
    given = ((path, value) for path, value in flatten(with_effect(wanted)) if path != "seed")
    return all(path in known and known[path] == value for path, value in given)


def _short(value: Any) -> str:
    if not is_named(value):
        return _flow(value)
    names = "+".join(_names(value))
    return f"{{rule: {names}, per_block: true}}" if value.get("per_block") is True else names


def _names(value: Mapping[str, Any]) -> Iterator[str]:
    if "rule" in value:
        for part in [*(value.get("mix") or []), value["rule"]]:
            yield from _names(part)
    else:
        for name, fields in value.items():
            target = fields.get("target") if name == "custom" and isinstance(fields, Mapping) else None
            yield str(target or name)


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in fields.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    return dump(value).strip().removesuffix("...").strip()
