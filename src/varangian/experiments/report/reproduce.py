"""The command that makes a run again, from the settings that differ from their defaults."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

from varangian.config import RunConfig, load
from varangian.config.yaml_text import dump
from varangian.experiments.identity import WITHOUT_EFFECT
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
    defaults = dict(flatten(_defaults()))
    changed = {
        path: value
        for path, value in flatten(wanted)
        if path not in WITHOUT_EFFECT and defaults.get(path) != value
    }
    short = {path: _short(value) for path, value in changed.items()}
    made = _load(short)
    # A name alone stands for the defaults of its fields; where those are others, all fields are written.
    exact = {
        path: text
        if made is not None and dict(flatten(made.resolved())).get(path) == changed[path]
        else None
        for path, text in short.items()
    }
    long = {path: text or _flow(changed[path]) for path, text in exact.items()}
    made = _load(long)
    if made is None or not _agrees(made.resolved(), wanted):
        return None
    return tuple(f"{path}={value}" for path, value in long.items())


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
    left_out = {*WITHOUT_EFFECT, "seed"}
    return all(
        path in known and known[path] == value for path, value in flatten(wanted) if path not in left_out
    )


def _short(value: Any) -> str:
    return "+".join(_names(value)) if is_named(value) else _flow(value)


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
