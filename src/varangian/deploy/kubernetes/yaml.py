"""Objects of Kubernetes as YAML that a person can read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import yaml

Object = dict[str, Any]
"""An object of Kubernetes, or a part of one."""
WIDTH = 110
UNITS = (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))
LIKE_ANOTHER_TYPE = re.compile(r"[\d.+-].*|[yYnN~]|yes|no|on|off|true|false|null|", re.IGNORECASE)
"""Strings that a parser of YAML 1.1 or 1.2 could take for something else."""


class Octal(int):
    """A mode of files, which is written as 0440."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True  # objects stand apart: a person changes one of them


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    if "\n" in value:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|")
    quoted = '"' if LIKE_ANOTHER_TYPE.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=quoted)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(
    Octal, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:int", f"0{value:o}")
)


def dump(value: Mapping[str, Any]) -> str:
    """One document."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH))


def documents(*commented: tuple[str, Mapping[str, Any]]) -> str:
    """Several documents in one file, each below a comment that is a text of lines that begin with `#`."""
    return "---\n".join(f"{comment}{dump(value)}" for comment, value in commented)


def memory(bytes: int) -> str:
    """An amount of memory, as 512Mi."""
    return next((f"{bytes // size}{unit}" for unit, size in UNITS if bytes % size == 0), str(bytes))


def processors(cpus: float) -> str:
    """A number of processors, as 2 or 500m."""
    thousandths = max(1, round(Decimal(str(cpus)) * 1000))
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"
