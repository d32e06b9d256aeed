"""The summary that `varangian advise` reads, from the results of the tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evidence.catalogue import Table

OF_A_GROUP = (
    "n",
    "f",
    "declared",
    "partition",
    "momentum",
    "participation",
    "model",
    "data",
    "rounds",
    "clean",
)


def advice(stored: Iterable[tuple[Table, Mapping[str, Any]]]) -> dict[str, Any]:
    """A part for each setting of the tables by which users are advised."""
    parts = list[dict[str, Any]]()
    for table, content in stored:
        if not table.advises:
            continue
        for group in content["groups"]:
            # A worst case that lacks an attack or a seed may be worse than it looks.
            rows = [_row(row) for row in group["rows"] if row["worst"] is not None and row["complete"]]
            if not rows:
                continue
            facts = {key: content[key] for key in ("command", "seeds")}
            runs = sum(cell[3] for row in group["rows"] for cell in row["attacks"].values())
            settings = {key: group[key] for key in OF_A_GROUP}
            parts.append({"name": table.name, **facts, "runs": runs, **settings, "rows": rows})
    return {"tables": parts}


def write_advice(path: Path, content: Mapping[str, Any]) -> None:
    """Write the summary, a line for each rule."""
    parts = [
        json.dumps({**part, "rows": []}).removesuffix("[]}")
        + "[\n"
        + ",\n".join(f"  {json.dumps(row)}" for row in part["rows"])
        + "\n ]}"
        for part in content["tables"]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"tables": [\n ' + ",\n ".join(parts) + "\n]}\n")


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    attacks = {name: _short(cell[0]) for name, cell in row["attacks"].items()}
    kept = {key: row[key] for key in ("aggregator", "clean", "worst", "worst_attack", "mean")}
    return {**{key: _short(value) for key, value in kept.items()}, "attacks": attacks}


def _short(value: Any) -> Any:
    """A tenth of a point."""
    return round(value, 3) if isinstance(value, float) else value
