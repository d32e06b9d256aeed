"""Two tables for the manual: `python -m tests.aggregators.tables`.

Conformance of every rule after every mixing, and agreement with the libraries that are installed.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
from tests.aggregators import kit, test_grid, test_peers


def conformance() -> Iterator[str]:
    families = len(kit.FAMILIES)
    found: dict[str | None, list[float]] = defaultdict(list)
    for rule, mixing in test_grid.CELLS:
        for family in kit.FAMILIES:
            torch.manual_seed(0)
            found[mixing].append(test_grid.difference(rule, mixing, family))
    yield "| mixing | rules | families | cases | agree to 1e-5 | largest difference |"
    yield "|---|---|---|---|---|---|"
    for mixing, errors in found.items():
        agree = sum(error <= 1e-5 for error in errors)
        rules = len(errors) // families
        name = mixing or "none"
        yield f"| {name} | {rules} | {families} | {len(errors)} | {agree} | {max(errors):.0e} |"


def agreement() -> Iterator[str]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case, n in test_peers.PLACES:
        if test_peers.find_spec(case[0]) is None:
            continue
        for family in test_peers.FAMILIES:
            torch.manual_seed(0)
            ours, theirs = test_peers.both(case, n, family)
            found[case].append(float((ours - theirs).norm() / theirs.norm()))
    yield "| library | rule | cases | largest relative difference |"
    yield "|---|---|---|---|"
    for (library, rule), errors in found.items():
        yield f"| {library} | {rule} | {len(errors)} | {max(errors):.0e} |"


if __name__ == "__main__":
    print("\n".join([*conformance(), "", *agreement()]))
