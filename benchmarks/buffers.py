"""ResNet-18 with BatchNorm on CIFAR-10, eight workers of which two attack: buffers robust, local, refused.

    VARANGIAN_CIFAR10=cifar10 python benchmarks/buffers.py --rounds 300 --json buffers.json

The model is the one of `examples/own-resnet`, with augmentation and ResNet-18's eight blocks, but --width
channels at first in place of 64, so that two cores train it. Attackers lie about statistics as about
gradients: their whole vector is what the attack makes of it. `none` has no attackers. Simulated: the
numbers are those of processes. A file of results is added to after each run, and what it has is not run
again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from varangian.config import load
from varangian.launch import RunError, run
from varangian.launch.output.run_result import RunResult

EXAMPLE = Path(__file__).parents[1] / "examples" / "own-resnet"
MODES = ("robust", "local", "refuse")


def settings(buffers: str, attack: str, options: argparse.Namespace) -> list[str]:
    """One run, as `varangian run` takes it."""
    attackers = [] if attack == "none" else ["byzantine.count=2", f"byzantine.attack={attack}"]
    blocks = f"{{width: {options.width}, blocks: [2, 2, 2, 2], pixels: 4, mirror: true}}"
    return [
        *(f"buffers={buffers}", "workers=8", "f=2", "aggregator=nnm+trimmed_mean", *attackers),
        f"data={{cifar10: {{path: {os.environ['VARANGIAN_CIFAR10']}, test_limit: {options.test}}}}}",
        f"model={{custom: {{target: 'resnet:build', options: {blocks}}}}}",
        *("partition=iid", f"worker.batch_size={options.batch}", "backend=simulate"),
        *(f"rounds={options.rounds}", f"evaluate.every={options.every}"),
        "optimizer={lr: 1.0, schedule: cosine}",
    ]


def outcome(given: list[str]) -> dict[str, Any]:
    """The scores of a run, or why there is none."""
    scores = list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result: RunResult = run(
                load(None, [*given, f"output={folder}"]),
                observe=lambda record: (
                    scores.append({"round": record.round, "accuracy": record.accuracy, "loss": record.loss})
                    if record.accuracy is not None and record.loss is not None
                    else None
                ),
                note=lambda text: None,
            )
        except RunError as error:
            return {"error": str(error)}
    if result.signal is not None:
        sys.exit(128 + result.signal)
    return {
        "accuracy": result.accuracy,
        "loss": result.loss,
        "seconds": round(result.seconds, 1),
        "digest": result.digest,
        "scores": scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--attacks", nargs="+", default=["sign_flip"])
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--json", type=Path, help="where to write all runs")
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLE))
    sizes = {name: getattr(options, name) for name in ("rounds", "every", "width", "batch", "test")}
    found: dict[str, Any] = {"commands": [], "runs": []}
    if options.json is not None and options.json.exists():
        found = json.loads(options.json.read_text())
    command = shlex.join(["python", "benchmarks/buffers.py", *sys.argv[1:]])
    found["commands"] = [*dict.fromkeys([*found["commands"], f"VARANGIAN_CIFAR10=cifar10 {command}"])]
    for buffers, attack in [("robust", "none"), *itertools.product(options.modes, options.attacks)]:
        asked = {"buffers": buffers, "attack": attack, "sizes": sizes}
        ended = next((one for one in found["runs"] if asked.items() <= one.items()), None)
        if ended is None:
            ended = {**asked, **outcome(settings(buffers, attack, options))}
            found["runs"].append(ended)
        print(f"{buffers:7} {attack:10}", ended.get("error") or f"{ended['accuracy']:.1%}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
