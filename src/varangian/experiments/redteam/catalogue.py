"""The attacks of the catalogue beside which a policy is measured, with the strengths that are tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from varangian.registry import MISSING, ConfigError
from varangian.worker.attacks import ATTACKS

STRENGTHS: dict[str, tuple[dict[str, Any], ...]] = {
    "alie": ({"z": 0.5}, {"z": 1.5}, {"z": 3.0}, {"z": "optimal"}),
    "ipm": ({"epsilon": 0.1}, {"epsilon": 2.0}, {"epsilon": "optimal"}),
    "min_max": ({"direction": "unit"}, {"direction": "std"}, {"direction": "sign"}),
    "min_sum": ({"direction": "unit"}, {"direction": "std"}, {"direction": "sign"}),
    "mimic": ({"warmup": 20},),
    "sign_flip": ({"scale": 1.0},),
    "stat_opt": ({"against": "krum"}, {"against": "coordinatewise"}),
    "sparse": ({"optimized": True},),
    "sleeper": ({"attack": "alie"}, {"attack": "ipm"}),
}
"""Settings that are tried beside the defaults; those that an attack does not take are left out."""
NOT_COMPARED = ("composite",)
"""Attacks that are searched themselves."""


def catalogue() -> Iterator[Any]:
    """Every attack as `byzantine.attack` takes it, with its defaults and with the strengths."""
    for name in ATTACKS:
        if name in NOT_COMPARED:
            continue
        seen = list[object]()
        for fields in ({}, *STRENGTHS.get(name, ())):
            if not fields and any(field.default is MISSING for field in ATTACKS.fields(name)):
                continue
            try:
                built = ATTACKS.build({name: fields}, "byzantine.attack")
            except ConfigError:
                continue
            if built not in seen:
                seen.append(built)
                yield {name: fields} if fields else name
