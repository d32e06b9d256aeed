"""The workers of a ByzFL configuration: how many there are, how they train, and what attackers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from varangian.experiments.sweep.byzfl.axes import Axis, each, without_repetitions
from varangian.experiments.sweep.byzfl.names import NO_ATTACK, Spec, our_attack
from varangian.experiments.sweep.byzfl.reading import (
    COUNT,
    FROM_ZERO,
    MOMENTUM,
    NOT_NEGATIVE,
    SHARE,
    TRUTH,
    Document,
    Named,
)
from varangian.registry import join, suggestion

OPTIMIZERS = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw", "Adagrad": "adagrad", "RMSprop": "rmsprop"}


@dataclass(frozen=True)
class Counts:
    """Numbers of workers."""

    honest: int
    byzantine: int
    tolerated: int


def training_axes(document: Document) -> Iterator[Axis]:
    """Axes of momentum, weight decay, learning rate and local steps."""
    momenta = document.values("honest_clients.momentum", MOMENTUM, 0.9)
    decays = document.values("honest_clients.weight_decay", NOT_NEGATIVE, 1e-4)
    names = document.choices("model.optimizer_name", [*OPTIMIZERS], "SGD")
    if len(names) > 1:
        document.say("model.optimizer_name", "should be one optimizer", names, "Write a file for each.")
    algorithms = _algorithms(document)
    sgd_alone = all(algorithm.name == "DSGD" for algorithm in algorithms)
    name = OPTIMIZERS[names[0]] if names else "sgd"
    if name != "sgd":
        yield [{"optimizer.name": name}]
    if sgd_alone:
        yield each("worker.momentum", momenta)
        yield each("optimizer.weight_decay", decays)
        yield _schedules(document)
        return
    if name != "sgd":
        document.note(f"FedAvg: local steps are those of SGD; {names[0]} is the server's optimizer.")
    yield [one for algorithm in algorithms for one in _of(document, algorithm, momenta, decays)]
    if any(algorithm.name == "DSGD" for algorithm in algorithms):
        yield _schedules(document)
    elif document.find("model.milestones"):
        document.note("milestones: ignored, as in ByzFL, whose FedAvg keeps its learning rate.")


def _algorithms(document: Document) -> list[Named]:
    path = "benchmark_config.training_algorithm"
    found, known = document.named(path, "DSGD"), ("DSGD", "FedAvg")
    for named in found:
        if named.name not in known:
            hint = suggestion(named.name, known)
            document.say(
                join(named.path, "name"), "there is no algorithm of this name in ByzFL", named.name, hint
            )
    fedavg = [named for named in found if named.name == "FedAvg"]
    for named in fedavg:
        for key, kind in (("proportion_selected_clients", SHARE), ("local_steps_per_client", COUNT)):
            if not kind.fits(value := named.parameters.get(key)):
                document.say(join(named.path, f"parameters.{key}"), f"should be {kind.words}", value)
    good = [named for named in found if named.name == "DSGD" or (named in fedavg and _complete(named))]
    return good or [Named("DSGD", {}, path)]


def _complete(named: Named) -> bool:
    share, steps = (
        named.parameters.get(key) for key in ("proportion_selected_clients", "local_steps_per_client")
    )
    return SHARE.fits(share) and COUNT.fits(steps)


def _of(
    document: Document, algorithm: Named, momenta: Sequence[float], decays: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """The settings of one algorithm, beside another."""
    if algorithm.name == "DSGD":
        for momentum, decay in product(momenta, decays):
            yield {"worker.momentum": momentum, "optimizer.weight_decay": decay}
        return
    steps: int = algorithm.parameters["local_steps_per_client"]
    share: float = algorithm.parameters["proportion_selected_clients"]
    if any(counts.honest * share < 1 for counts in _counts(document)):
        here = join(algorithm.path, "parameters.proportion_selected_clients")
        document.say(here, "should select at least one of the honest workers", share)
        return
    document.note(
        "FedAvg: workers send the sum of their gradients, where ByzFL aggregates models; rules and attacks "
        "that look at the origin, as Clipping, ARC and SignFlipping, see other vectors than there."
    )
    document.note(
        "FedAvg: a round selects workers whose last turn is the longest ago; ByzFL draws them at random."
    )
    document.note("FedAvg: momentum is not used, as in ByzFL.")
    if any(decays):
        document.note(
            "FedAvg: weight decay is applied by the server once a round, times the number of local steps."
        )
    participants = sorted({int(counts.honest * share) for counts in _counts(document)})
    if len(participants) > 1:
        rule = "should stand beside one number of honest workers"
        document.say(join(algorithm.path, "parameters.proportion_selected_clients"), rule, share)
    for decay in decays:
        yield {
            "worker.momentum": 0.0,
            "worker.local_steps": steps,
            "optimizer.weight_decay": float(f"{decay * steps:.12g}"),
            "participation": {"fedavg": {"participants": participants[0]}},
        }


def _schedules(document: Document) -> Axis:
    """Multi-step decay at the milestones, by every factor."""
    factors = document.values("model.learning_rate_decay", SHARE, 1.0)
    found = document.find("model.milestones", [])
    nested = isinstance(found, list) and bool(found) and all(isinstance(entry, list) for entry in found)
    many: list[Any] = found if nested else [found]
    for milestones in many:
        rising = isinstance(milestones, list) and all(COUNT.fits(step) for step in milestones)
        if not rising or [*milestones] != sorted(set(milestones)):
            rule = "should be different steps from 1, ascending"
            document.say("model.milestones", rule, milestones)
            return []
    steps = [
        {"multi_step": {"milestones": milestones, "gamma": float(factor)}}
        if milestones and factor < 1
        else "constant"
        for milestones, factor in product(many, factors)
    ]
    return [] if steps == ["constant"] else each("optimizer.schedule", without_repetitions(steps))


def _counts(document: Document) -> list[Counts]:
    """The numbers of workers of all points."""
    here = "benchmark_config"
    tolerated = document.find(f"{here}.tolerated_f")
    bounds = None if tolerated is None else document.values(f"{here}.tolerated_f", FROM_ZERO, 0)
    found = list[Counts]()
    for clients, fixed, f in product(
        document.values(f"{here}.nb_honest_clients", COUNT, 10),
        document.values(f"{here}.set_honest_clients_as_clients", TRUTH, False),
        document.values(f"{here}.f", FROM_ZERO, 0),
    ):
        honest = clients - f if fixed else clients
        if honest < 1:
            document.say(f"{here}.f", f"should leave an honest worker of {clients}", f)
            continue
        found += [Counts(honest, f, bound) for bound in (bounds or [f]) if bound >= f or bounds is None]
    if bounds is not None and not found:
        document.say(f"{here}.tolerated_f", "should be at least f in one case", tolerated)
    return without_repetitions(found)


def attack_axes(document: Document) -> Iterator[Axis]:
    """Axes of the numbers of workers and of the attacks, apart where every point has every attack."""
    counts, attacks = _counts(document), document.named("attack", NO_ATTACK)
    attacked = any(count.byzantine for count in counts)
    if attacked:
        yield [{"byzantine.data": "all"}]
    if attacked and any(named.name == NO_ATTACK for named in attacks):
        document.note(f"{NO_ATTACK}: ByzFL stops where f is above 0; here all workers are honest then.")
    whole = all(algorithm.name == "DSGD" for algorithm in _algorithms(document))
    specs = {count.honest: _attacks(document, attacks, count.honest if whole else None) for count in counts}
    if attacked and any("alie" in spec for found in specs.values() for spec in found if spec):
        yield [{"byzantine.knows": "all"}]
    if len(specs) == 1 and all(count.byzantine for count in counts) and None not in (*specs.values(),)[0]:
        yield [_numbers(count, count.byzantine) for count in counts]
        yield each("byzantine.attack", (*specs.values(),)[0])
        return
    yield [
        {**_numbers(count, count.byzantine), "byzantine.attack": spec}
        if spec and count.byzantine
        else _numbers(count, 0)
        for count in counts
        for spec in specs[count.honest]
    ]


def _attacks(document: Document, attacks: Sequence[Named], honest: int | None) -> list[Spec | None]:
    """The attacks that stand here for theirs, each once; None for no attack."""
    names = dict[str, str]()
    found = list[Spec | None]()
    for named in attacks:
        spec = None if named.name == NO_ATTACK else our_attack(document, named, honest)
        if spec is None and named.name != NO_ATTACK:
            continue
        first = names.setdefault(str(spec), named.name)
        if spec not in found:
            found.append(spec)
        elif first != named.name:
            document.note(f"{named.name}: the same as {first} here, so it is run once.")
    return found


def _numbers(count: Counts, attackers: int) -> dict[str, Any]:
    workers = count.honest + count.byzantine
    return {"workers": workers, "f": count.tolerated, "byzantine.count": attackers}
