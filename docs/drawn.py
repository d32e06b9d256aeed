"""The drawings of the documents: `python docs/drawn.py` writes docs/images/layers.svg and round.svg.

The layers and rooms are those of the import contracts in pyproject.toml; a test compares the committed
drawing with them.
"""

from __future__ import annotations

import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from html import escape

ROOT = pathlib.Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
WIDTH, MARGIN, GAP = 880, 20, 10
WHAT = {
    "__main__": "the command",
    "serving": "the server of a program",
    "api": "runs and sweeps for programs and notebooks",
    "bench": "what rules, transfers and rounds cost",
    "experiments": "sweeps, results, reports",
    "deploy": "a run as files for an engine",
    "cli": "one file for each command; progress, tables, pictures",
    "launch": "runs in processes or simulation; what they leave",
    "client": "a worker in a loop of your own",
    "config": "YAML and key=value to built objects",
    "trackers": "TensorBoard, Weights & Biases, MLflow",
    "lightning": "its Trainer as a worker",
    "huggingface": "its Trainer as a worker",
    "loops": "rounds as steps of a framework's loop",
    "flower": "rules inside Flower",
    "nvflare": "rules inside NVFlare",
    "torchft": "rules inside torchft",
    "torch": "rules inside torch.distributed",
    "federated": "rules on models by name",
    "frameworks": "what those have in common",
    "pki": "the authority of a cluster",
    "server": "rounds, rows, the optimizer step, calls",
    "worker": "data, gradients, attacks, pull and push",
    "aggregators": "rules and mixings: torch in, torch out",
    "protos": "the wire format and its checks",
    "own_classes": "users' classes in the place of names",
    "plugins": "the boundary around users' code",
    "telemetry": "OpenTelemetry and heartbeat of both ends",
    "registry": "names to classes",
}
COLOURS = {"server": "side", "worker": "side", "aggregators": "core", "protos": "core"}
STYLE = """
    text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2933 }
    .name { font-size: 16px; font-weight: 600 }
    .what { font-size: 13px; fill: #52606d }
    .room { font-size: 12.5px }
    .shell { fill: #e8eef7; stroke: #7b93b8 }
    .side { fill: #fdf3e1; stroke: #cf9f45 }
    .core { fill: #e5f4ea; stroke: #5da777 }
    .inner { fill: #ffffff; stroke: #9aa5b1 }
    .line { stroke: #9aa5b1; stroke-width: 1.2 }
    .arrow { stroke: #3e6ab1; stroke-width: 1.6; fill: none; marker-end: url(#head) }
    .data { stroke: #2f855a; stroke-width: 3.2; fill: none; marker-end: url(#fat) }
"""
ARROWS = {"head": (7, "#3e6ab1"), "fat": (4, "#2f855a")}
"""Arrowheads: the size and colour of each."""


def main() -> None:
    for name, drawing in drawn().items():
        (IMAGES / name).write_text(drawing)


def drawn() -> dict[str, str]:
    """Every drawing by the name of its file."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return {"layers.svg": layers(contracts), "round.svg": a_round()}


def svg(height: float, title: str, body: Sequence[str]) -> str:
    heads = [
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="{size}" '
        f'markerHeight="{size}" orient="auto"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        for name, (size, colour) in ARROWS.items()
    ]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title>',
        f"<style>{STYLE}</style>",
        *("<defs>", *heads, "</defs>"),
        f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="#ffffff"/>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def box(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'


def text(kind: str, x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(content)}</text>'


# The layers


def layers(contracts: Sequence[Mapping[str, object]]) -> str:
    """The package: each layer imports from those below it; inside a box, its rooms in the same order."""
    stacked = {
        tuple(str(one) for one in contract.get("containers", ())): rows(contract)
        for contract in contracts
        if contract["type"] == "layers"
    }
    rooms = {
        containers[0].removeprefix("varangian."): floors
        for containers, floors in stacked.items()
        if containers
    }
    body, y = [], MARGIN
    for row in stacked[()]:
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        height = max(50 + 30 * len(rooms.get(name, ())) + (6 if name in rooms else 0) for name in row)
        for column, name in enumerate(row):
            x = MARGIN + column * (width + GAP)
            body += [
                box(COLOURS.get(name, "shell"), x, y, width, height),
                text("name", x + 14, y + 22, name),
            ]
            body.append(text("what", x + 14, y + 40, WHAT[name]))
            body += floors(rooms.get(name, ()), x + 14, y + 50, width - 28)
        y += height + GAP
    return svg(
        y + MARGIN - GAP, "The layers of Varangian: a module imports only from the layers below it", body
    )


def rows(contract: Mapping[str, object]) -> list[list[str]]:
    """The layers of a contract from the top, each as the names side by side in it."""
    listed = contract["layers"]
    assert isinstance(listed, list)
    return [
        [name.strip(" ()").removeprefix("varangian.") for name in layer.replace(":", "|").split("|")]
        for layer in listed
    ]


def floors(listed: Sequence[Sequence[str]], x: float, y: float, width: float) -> list[str]:
    """The rooms of a box, each as wide as its name needs beside its neighbours."""
    body = []
    for number, row in enumerate(listed):
        share = (width - 6 * (len(row) - 1)) / sum(len(name) + 6 for name in row)
        left, top = x, y + 30 * number
        for name in row:
            each = share * (len(name) + 6)
            body += [box("inner", left, top, each, 24)]
            body += [text("room", left + each / 2, top + 16.5, name, "middle")]
            left += each + 6
    return body


# A round

STEPS = [
    ("arrow", 0, 1, "Pull: the model after round r - 1"),
    ("data", 1, 0, "manifest, then the parameters"),
    ("self", 0, 0, "gradient, momentum (or an attack)"),
    ("arrow", 0, 1, "Push: round, layout, digest"),
    ("arrow", 1, 2, "offer"),
    ("arrow", 2, 1, "admitted, or refused: why"),
    ("data", 0, 1, "payload, into the worker's row"),
    ("arrow", 1, 2, "complete, digest right, finite"),
    ("self", 2, 2, "quorum? waited enough? deadline?"),
    ("arrow", 2, 3, "close: rows, faults, missing"),
    ("self", 3, 3, "rule, optimizer step, evaluation, record"),
    ("arrow", 3, 2, "committed: round r + 1 is open"),
]
ACTORS = ["worker", "calls (transport)", "state machine (protocol)", "coordinator, learner"]


def a_round() -> str:
    """A round as a sequence of messages; thick arrows are payloads."""
    at = [115, 345, 565, 775]
    bottom = 90 + 40 * len(STEPS)
    body = []
    for x, actor in zip(at, ACTORS, strict=True):
        body += [box("shell", x - 85, MARGIN, 170, 34), text("room", x, MARGIN + 22, actor, "middle")]
        body.append(f'<line class="line" x1="{x}" y1="{MARGIN + 34}" x2="{x}" y2="{bottom - 10}"/>')
    for number, (kind, here, there, label) in enumerate(STEPS):
        y = 92 + 40 * number
        if kind == "self":
            left = min(max(at[here] - 130, MARGIN / 2), WIDTH - 260 - MARGIN / 2)
            body += [box("inner", left, y - 16, 260, 26), text("room", left + 130, y + 1, label, "middle")]
            continue
        end = at[there] + (-3 if there > here else 3)
        body.append(f'<path class="{kind}" d="M{at[here]} {y} H{end}"/>')
        body.append(text("room", (at[here] + at[there]) / 2, y - 6, label, "middle"))
    return svg(bottom + 6, "A round, from the pull of a model to the next one", body)


if __name__ == "__main__":
    main()
