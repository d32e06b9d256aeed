"""JSON Schema (draft 2020-12) of everything that can be written in a configuration.

The tree itself is pydantic's part; here are the names of the registries, with the fields behind each name.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from varangian.registry import MISSING, Field, Registry, named_in

JsonSchema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null", None: "null"}


def named(registry: Registry[Any]) -> list[JsonSchema]:
    """What may stand where a name of `registry` is expected: the name, or the name with its fields."""
    names = {"enum": list(registry), "description": f"The name of a {registry.kind}."}
    return [names, *(_with_fields(registry, name) for name in registry)]


def below(registry: Registry[Any]) -> dict[str, str | None]:
    """The fields of its classes where a name stands for an object, as paths, with the name by default."""
    return {
        f"{name}.{field.name}": None if field.default is MISSING else field.shown
        for name in registry
        for field in registry.fields(name)
        if named_in(field.hint) is not None
    }


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a class, as one line each."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):  # a class without source has no docs to read
        return {}
    docs: dict[str, str] = {}
    for statement, following in pairwise(getattr(tree, "body", [])):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
            case _:
                pass
    return docs


def of_type(hint: Any) -> JsonSchema:
    """The schema of an annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if registry := named_in(hint):
        return {"anyOf": named(registry)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [of_type(arg) for arg in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (tuple, list):
        return {"type": "array", "items": of_type(args[0])}
    return {"type": _PLAIN[hint]} if hint in _PLAIN else {}


def with_fields(cls: type[Any], fields: Sequence[Field]) -> JsonSchema:
    """An object with the fields of a class."""
    docs = field_docs(cls)
    return {
        "type": "object",
        "description": (cls.__doc__ or "").partition("\n")[0],
        "properties": {field.name: _field(field, docs) for field in fields},
        "required": [field.name for field in fields if field.default is MISSING],
        "additionalProperties": False,
    }


def _with_fields(registry: Registry[Any], name: str) -> JsonSchema:
    cls, _ = registry.entry(name)
    fields = with_fields(cls, registry.fields(name))
    # A mixing or a rule need not be told the f of the run.
    inside: JsonSchema = {
        **fields,
        "required": [],
        "type": ["object", "null"],
        "description": registry.summary(name),
    }
    return {
        "type": "object",
        "title": name,
        "properties": {name: inside},
        "required": [name],
        "additionalProperties": False,
    }


def _field(field: Field, docs: dict[str, str]) -> JsonSchema:
    schema = of_type(field.hint)
    if field.name in docs:
        schema["description"] = docs[field.name]
    default = field.shown
    representable = not (isinstance(default, float) and not math.isfinite(default))
    if field.default is not MISSING and representable:
        schema["default"] = default
    return schema
