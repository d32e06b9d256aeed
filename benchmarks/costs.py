"""The measured costs of rules for `varangian advise`: times of `varangian bench aggregators`, in short.

    python benchmarks/costs.py

reads benchmarks/results/aggregators-*.json and writes src/varangian/experiments/advice/costs.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks/results/aggregators-xeon-avx512-2cores.json"
COSTS = ROOT / "src/varangian/experiments/advice/costs.json"


def costs() -> dict[str, Any]:
    """Of each size the time of a mean, and that of every rule as a multiple of it."""
    measured = json.loads(MEASURED.read_text())
    machine = measured["machine"]
    sizes = [
        {
            "n": size["n"],
            "d": size["d"],
            "f": size["f"],
            "mean_ms": round(size["mean"]["wall_ms"], 2),
            "ratios": {
                line["name"].replace(",", "+"): round(line["timing"]["wall_x_mean"], 2)
                for line in size["lines"]
                if line["library"] == "varangian" and line["timing"] and line["name"] != "gram"
            },
        }
        for size in measured["sizes"]
    ]
    return {"machine": f"{machine['cpu']}, {machine['cores']} cores", "sizes": sizes}


def main() -> None:
    COSTS.write_text(json.dumps(costs(), indent=1) + "\n")


if __name__ == "__main__":
    main()
