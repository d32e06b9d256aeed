"""Policies of the search: composite attacks as parameters of a genetic search, and as text.

A policy is a `Composite`. Its parameters have discrete values, so that a crossover of two policies is one,
and equal policies are evaluated once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from varangian.worker.attacks.composite import MOST, OPERATORS, Composite, Step

BUDGETS: tuple[float | None, ...] = (None, 0.5, 1.0, 2.0)
FOUND = (
    Composite(steps=("toward 4", "optimal 1"), budget=1.0),
    Composite(steps=("toward 1", "optimal 64")),
    Composite(steps=("ipm 0.5", "toward 4", "optimal 64")),
    Composite(steps=("ipm 0.5", "toward 2", "optimal 64")),
    Composite(steps=("alie 1", "optimal 64")),
    Composite(steps=("alie 1 memory", "optimal 64")),
    Composite(steps=("min_sum_std 1",)),
)
"""Policies that searches have found strongest against some rule. Every search begins with them too, and
they are always trained with: some do more harm in trainings than on recorded rounds."""
LEVELS = 8
COLLUSION = ("ipm 0.25", "alie 3")
"""Steps in a direction of `flag_collusion`: against the mean, and more against the deviations."""
ALONG = {"unit": "flip 1", "std": "alie 1", "sign": "min_max_sign 1"}
"""Steps in the directions of `agr_tailored`."""
Parameters = Mapping[str, Any]


def choices(f: int) -> dict[str, tuple[Any, ...]]:
    """The parameters of a policy of f attackers, and the values of each."""
    scopes = (False, True) if f > 1 else (False,)
    found: dict[str, tuple[Any, ...]] = {"steps": tuple(range(1, MOST + 1)), "budget": BUDGETS}
    for place in range(MOST):
        found |= {
            f"operator{place}": (*OPERATORS,),
            f"level{place}": tuple(range(LEVELS)),
            f"half{place}": scopes,
            f"memory{place}": (False, True),
        }
    return found


def policy_of(parameters: Parameters) -> Composite:
    """The policy with these parameters; those of steps that it has not do not matter."""
    steps = [_step(parameters, place) for place in range(parameters["steps"])]
    return Composite(steps=tuple(map(str, steps)), budget=parameters["budget"])


def _step(parameters: Parameters, place: int) -> Step:
    name = parameters[f"operator{place}"]
    operator = OPERATORS[name]
    memory = parameters[f"memory{place}"] and operator.remembers
    return Step(name, operator.levels[parameters[f"level{place}"]], parameters[f"half{place}"], memory)


def parameters_of(policy: Composite) -> dict[str, Any]:
    """The parameters with which the search makes a policy, with the nearest level of each strength."""
    found: dict[str, Any] = {"steps": len(policy.policy), "budget": policy.budget}
    for place, step in enumerate((*policy.policy, *[Step.read("scale")] * MOST)[:MOST]):
        levels = OPERATORS[step.operator].levels
        near = min(range(LEVELS), key=lambda level: abs(levels[level] - step.strength))
        found |= {
            f"operator{place}": step.operator,
            f"level{place}": near,
            f"half{place}": step.half,
            f"memory{place}": step.memory,
        }
    return found


def known_policies(f: int) -> tuple[Composite, ...]:
    """The attacks of the catalogue that are policies, with which a search begins."""
    texts = [
        *(("alie 0.2",), ("alie 1.5",), ("ipm 0.1",), ("ipm 0.5",), ("ipm 2",), ("flip 1",), ("flip 8",)),
        *((f"min_{kind}",) for kind in ("max", "max_std", "max_sign", "sum", "sum_std", "sum_sign")),
        *(("mimic",), ("gaussian 16",), ("drop",), ("replay 16",)),
        *(
            (first, "optimal 64")
            for first in ("alie 1", "ipm 1", "min_max_sign", "mimic", "principal 1", "alie 1 memory")
        ),
        *(("away 1",), ("alie 1.5", "ipm 0.5")),
        *(COLLUSION, ("alie 8",)),
    ]
    if f > 1:
        texts.append(("alie 1.5", "ipm 0.5 half"))
    known = {name_of(policy): policy for policy in map(_of_steps, texts)}
    return tuple((known | {name_of(policy): policy for policy in FOUND}).values())


def _of_steps(steps: tuple[str, ...]) -> Composite:
    return Composite(steps=steps)


def neighbours(policy: Composite, f: int) -> Iterator[Composite]:
    """Policies that differ in one thing: a strength, the budget, a scope, a memory, or a step."""
    own = parameters_of(policy)
    count = own["steps"]
    changes = list[dict[str, Any]]()
    for place in range(count):
        level = own[f"level{place}"]
        changes += [{f"level{place}": other} for other in (level - 1, level + 1) if 0 <= other < LEVELS]
        changes.append({f"memory{place}": not own[f"memory{place}"]})
        if f > 1:
            changes.append({f"half{place}": not own[f"half{place}"]})
    changes += [{"budget": budget} for budget in BUDGETS if budget != own["budget"]]
    if count < MOST and not any(step.operator == "optimal" for step in policy.policy):
        added = {f"operator{count}": "optimal", f"half{count}": False, f"memory{count}": False}
        changes += [{"steps": count + 1, f"level{count}": level, **added} for level in (3, 5, 7)]
    for gone in range(count) if count > 1 else ():
        kept = [place for place in range(count) if place != gone]
        moved = {
            f"{part}{new}": own[f"{part}{old}"]
            for (new, old), part in itertools.product(
                enumerate(kept), ("operator", "level", "half", "memory")
            )
        }
        changes.append({"steps": count - 1, **moved})
    seen = {name_of(policy)}
    for change in changes:
        found = policy_of({**own, **change})
        if name_of(found) not in seen:
            seen.add(name_of(found))
            yield found


def spec_of(policy: Composite) -> dict[str, Any]:
    """The policy as `byzantine.attack` takes it."""
    fields: dict[str, Any] = {"steps": [*map(str, policy.policy)]}
    if policy.budget is not None:
        fields["budget"] = policy.budget
    return {"composite": fields}


def policy_form(attack: Any) -> Composite | None:
    """An attack as `byzantine.attack` takes it, as a policy; None if it is none."""
    if isinstance(attack, str):
        attack = {attack: {}}
    ((name, fields),) = attack.items()
    if name == "composite":
        return Composite(steps=tuple(fields["steps"]), budget=fields.get("budget"))
    direction = fields.get("direction", "unit")
    if name == "agr_tailored":
        return Composite(steps=(ALONG[direction], "optimal 64"))
    if name == "flag_collusion":
        return Composite(steps=COLLUSION)
    if name == "sign_flip":
        return Composite(steps=(f"flip {fields.get('scale', 10.0):g}",))
    strength = fields.get({"alie": "z", "ipm": "epsilon"}.get(name, ""))
    optimal = ("optimal 64",) if strength == "optimal" else ()
    number = f" {strength:g}" if isinstance(strength, int | float) and strength > 0 else ""
    ending = "" if direction == "unit" else f"_{direction}"
    names = {"alie": f"alie{number}", "ipm": f"ipm{number}", "mimic": "mimic"}
    names |= {kind: f"{kind}{ending}" for kind in ("min_max", "min_sum")}
    return Composite(steps=(names[name], *optimal)) if name in names else None


def name_of(policy: Composite) -> str:
    """The policy as one line: `alie 1.5, ipm 0.5 half; budget 1`."""
    budget = "" if policy.budget is None else f"; budget {policy.budget:g}"
    return ", ".join(map(str, policy.policy)) + budget
