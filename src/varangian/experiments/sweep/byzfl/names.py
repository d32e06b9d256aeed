"""ByzFL's names of rules, pre-aggregators and attacks (0.0.11), with what stands here for each.

An entry has the parameters with their defaults there, what they become here, and a sentence where numbers
differ. The number of Byzantine workers is no parameter: ByzFL sets it, and here it is `f`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from varangian.experiments.sweep.byzfl.reading import (
    COUNT,
    FROM_ZERO,
    NUMBER,
    POSITIVE,
    Document,
    Kind,
    Named,
)
from varangian.registry import join, suggestion

Spec: TypeAlias = str | dict[str, Any]
"""A rule, a mixing or an attack, as a configuration has it."""
KRUM = "the condition n >= 2 f + 3 of the paper is asked for, where ByzFL asks for n > 2 f"


@dataclass(frozen=True)
class Entry:
    """The counterpart of one name of ByzFL."""

    ours: Callable[[Mapping[str, Any]], Spec]
    """From its parameters."""
    note: str = ""
    """The difference, as the rest of a sentence that begins with the name."""
    parameters: Mapping[str, tuple[Kind, Any]] = field(default_factory=dict[str, tuple[Kind, Any]])
    """Kind and default of each."""


def _fixed(spec: Spec) -> Callable[[Mapping[str, Any]], Spec]:
    return lambda _: spec


RULES: Mapping[str, Entry] = {
    "Average": Entry(_fixed("mean")),
    "Median": Entry(_fixed("median")),
    "TrMean": Entry(_fixed("trimmed_mean")),
    "GeometricMedian": Entry(
        _fixed("geometric_median"),
        "geometric_median iterates to convergence, where ByzFL takes T steps from zero with nu",
        {"nu": (POSITIVE, 0.1), "T": (FROM_ZERO, 3)},
    ),
    "Krum": Entry(_fixed({"krum": {"convention": "byzfl"}}), KRUM),
    "MultiKrum": Entry(_fixed({"multi_krum": {"convention": "byzfl"}}), KRUM),
    "CenteredClipping": Entry(
        lambda given: {"centered_clipping": {"tau": float(given["tau"]), "iterations": given["L"]}},
        parameters={"L": (COUNT, 1), "tau": (POSITIVE, 100.0)},
    ),
    "MDA": Entry(_fixed("mda")),
    "MoNNA": Entry(
        _fixed("monna"),
        "monna trusts the last aggregate, where ByzFL trusts the vector of worker idx",
        {"idx": (FROM_ZERO, 0)},
    ),
    "Meamed": Entry(
        _fixed("meamed"),
        "of two values that are equally far from the median meamed takes the smaller, ByzFL either of them",
    ),
    "CAF": Entry(
        _fixed("caf"), "caf computes eigenvectors exactly, where ByzFL takes one step from a random vector"
    ),
    "SMEA": Entry(
        _fixed("smea"), "smea computes eigenvalues exactly, where ByzFL takes one step from a random vector"
    ),
}

MIXINGS: Mapping[str, Entry] = {
    "NNM": Entry(_fixed("nnm")),
    "ARC": Entry(_fixed("arc")),
    "Clipping": Entry(
        lambda given: {"clipping": {"radius": float(given["c"])}}, parameters={"c": (POSITIVE, 2.0)}
    ),
    "Bucketing": Entry(lambda given: {"bucketing": {"s": given["s"]}}, parameters={"s": (COUNT, 1)}),
}

SEARCHED = (
    "the strongest tau of every round is found by a grid and golden sections, where ByzFL expands and "
    "contracts a step"
)
_SEARCH = {
    "evals": (COUNT, 20),
    "start": (NUMBER, 0.0),
    "delta": (NUMBER, 10.0),
    "ratio": (POSITIVE, 0.8),
}
"""Of the line search of ByzFL's optimal attacks."""

ATTACKS: Mapping[str, Entry] = {
    "SignFlipping": Entry(_fixed({"ipm": {"epsilon": 1.0}})),
    "InnerProductManipulation": Entry(
        lambda given: {"ipm": {"epsilon": float(given["tau"])}}, parameters={"tau": (POSITIVE, 2.0)}
    ),
    "Optimal_InnerProductManipulation": Entry(
        _fixed({"ipm": {"epsilon": "optimal"}}),
        f"{SEARCHED}, above 0",
        _SEARCH,
    ),
    "ALittleIsEnough": Entry(
        lambda given: {"alie": {"z": -float(given["tau"])}}, parameters={"tau": (NUMBER, 1.5)}
    ),
    "Optimal_ALittleIsEnough": Entry(
        _fixed({"alie": {"z": "optimal"}}),
        f"{SEARCHED}, and standard deviations are subtracted where ByzFL adds them",
        _SEARCH,
    ),
    "Mimic": Entry(
        lambda given: {"mimic": {"target": given["epsilon"]}}, parameters={"epsilon": (FROM_ZERO, 0)}
    ),
    "Gaussian": Entry(
        lambda given: {"gaussian": {"sigma": float(given["sigma"])}},
        "each attacker draws a vector of its own, of mean zero, where ByzFL draws one for all, of mean mu",
        {"mu": (NUMBER, 0.0), "sigma": (POSITIVE, 1.0)},
    ),
    "Inf": Entry(
        _fixed({"non_finite": {"value": "inf"}}),
        "vectors that are not finite are dropped and spend the f, where in ByzFL most rules return NaN",
    ),
    "LabelFlipping": Entry(
        _fixed("label_flip"),
        "each attacker sends the momentum of its own gradients, where in ByzFL all of them send the mean "
        "of the honest workers' gradients for wrong labels",
    ),
}
NO_ATTACK = "NoAttack"


def our_rule(document: Document, named: Named) -> Spec | None:
    """The rule that stands here for theirs; None where there is none, a problem of the document."""
    return _ours(document, named, RULES, "aggregator")


def our_mixing(document: Document, named: Named) -> Spec | None:
    """The mixing that stands here for a pre-aggregator of theirs; None as for a rule."""
    return _ours(document, named, MIXINGS, "pre-aggregator")


def our_attack(document: Document, named: Named, honest: int | None) -> Spec | None:
    """The attack that stands here for theirs; None as for a rule.

    Args:
        document: takes problems and notes.
        named: not `NO_ATTACK`.
        honest: the number of honest vectors of a round; None where it varies.
    """
    spec = _ours(document, named, ATTACKS, "attack", (NO_ATTACK,))
    if isinstance(spec, dict) and "alie" in spec and spec["alie"]["z"] != "optimal":
        tau = -spec["alie"]["z"]
        note = f"{named.name}: ByzFL adds tau standard deviations, so z is negative"
        if honest is None or honest < 2:
            document.note(f"{note}; ByzFL's are those of a sample, which are longer.")
            return spec
        z = float(f"{-tau * math.sqrt(honest / (honest - 1)):.6g}")
        document.note(
            f"{note}; {tau:g} of a sample of {honest}, as there, are {-z:g} of a population, as here."
        )
        return {"alie": {"z": z}}
    return spec


def _ours(
    document: Document,
    named: Named,
    entries: Mapping[str, Entry],
    kind: str,
    others: tuple[str, ...] = (),
) -> Spec | None:
    entry = entries.get(named.name)
    if entry is None:
        hint = suggestion(named.name, [*entries, *others])
        document.say(
            join(named.path, "name"), f"there is no {kind} of this name in ByzFL", named.name, hint
        )
        return None
    given, fits = {name: default for name, (_, default) in entry.parameters.items()}, True
    for name, value in named.parameters.items():
        here = join(join(named.path, "parameters"), name)
        if name == "f":
            document.note(f"{named.name}: a parameter f is ignored, as in ByzFL; tolerated_f is taken.")
        elif name not in entry.parameters:
            known = entry.parameters
            hint = suggestion(name, known) if known else f"{named.name} has no parameters."
            document.say(here, "there is no such parameter, which ByzFL would ignore", value, hint)
            fits = False
        elif not entry.parameters[name][0].fits(value):
            document.say(here, f"should be {entry.parameters[name][0].words}", value)
            fits = False
        else:
            given[name] = value
    if not fits:
        return None
    if entry.note:
        named_there = entry.parameters if entry.parameters is not _SEARCH else {}
        there = ", ".join(f"{name} = {given[name]:g}" for name in named_there)
        document.note(f"{named.name}{f' ({there})' if there else ''}: {entry.note}.")
    return entry.ours(given)
