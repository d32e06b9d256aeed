"""The list of checks between settings, and the short ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from varangian.aggregators.base import by_place
from varangian.aggregators.streaming.stream import streams
from varangian.config.checks.availability import check_attendance, check_delays, check_mimic_attendance
from varangian.config.checks.fragments import check_fragments
from varangian.config.checks.gate import check_gate
from varangian.config.checks.rounds import (
    check_answers,
    check_buffers,
    check_guarantee,
    check_machine,
    check_mimic_momentum,
    check_participation,
    check_rows_folder,
    check_vectors,
    check_window,
)
from varangian.config.checks.weights import check_cap, check_dealt, check_form, check_weights
from varangian.config.settings import AUTO, RunConfig
from varangian.registry import FIXES, Problem, fixes
from varangian.server.training.optimizers import OPTIMIZERS, OwnOptimizer
from varangian.worker.attacks import DataAttack, ProtocolAttack, inner_attack, why_impossible
from varangian.worker.training.losses import name_of
from varangian.worker.training.metrics import MetricError, choose_metrics

OWN = "own"


@dataclass(frozen=True)
class Check:
    """A check of several settings; it runs when each of them is valid by itself."""

    needs: frozenset[str]
    ask: Callable[[RunConfig], Iterator[Problem]]
    whole: bool = False
    """Whether it is about all programs of a run together; a server, for one, need not know of an attack."""


def find_problems(
    config: RunConfig, *, whole: bool = True, invalid: frozenset[str] = frozenset()
) -> list[Problem]:
    """The problems between settings.

    Args:
        config: the settings.
        whole: whether this is the configuration of a whole run, not of one program of a cluster.
        invalid: top-level settings to disregard, because they have a problem of their own.
    """
    asked = [check for check in CHECKS if not check.needs & invalid and (whole or not check.whole)]
    return [problem for check in asked for problem in check.ask(config)]


def advice(config: RunConfig) -> list[str]:
    """Warnings: what is allowed, but hardly meant."""
    return [
        sentence for sentence in (_warn_unprotected(config), _warn_more_than_declared(config)) if sentence
    ]


def _check_byzantine_count(config: RunConfig) -> Iterator[Problem]:
    count = config.byzantine.count
    if count >= config.workers:
        rule = f"should leave at least one of the {config.workers} workers honest"
        yield Problem("byzantine.count", rule, count)


def _check_attack(config: RunConfig) -> Iterator[Problem]:
    byzantine = config.byzantine
    if byzantine.count and byzantine.attack is None:
        offers = fixes(byzantine__attack="sign_flip", byzantine__count=0)
        rule = f"is needed when there are Byzantine workers, and byzantine.count is {byzantine.count}"
        yield Problem("byzantine.attack", rule, hint=f"Set {FIXES}.", fixes=offers)
    if byzantine.attack is not None and not byzantine.count:
        offers = fixes(byzantine__count=max(1, config.f), byzantine__attack=None)
        rule = "should be at least 1 when there is an attack"
        yield Problem("byzantine.count", rule, 0, f"Set {FIXES}.", offers)


def _check_attack_possible(config: RunConfig) -> Iterator[Problem]:
    byzantine = config.byzantine
    attack = inner_attack(byzantine.attack)
    if attack is not None and 0 < byzantine.count < config.workers:
        reason = why_impossible(attack, config.workers, byzantine.count, byzantine.knows)
        if reason is not None:
            yield Problem("byzantine.attack", f"cannot be mounted: {reason}")


def _check_wire(config: RunConfig) -> Iterator[Problem]:
    """Attacks on the protocol, which need real connections."""
    if isinstance(config.byzantine.attack, ProtocolAttack) and config.backend == "simulate":
        offers = (*fixes(backend="processes"), *fixes(byzantine__attack="sign_flip"))
        rule = "is an attack on the protocol, and backend=simulate has no connections to attack"
        yield Problem("byzantine.attack", rule, hint=f"Set {FIXES}.", fixes=offers)


def _check_labels(config: RunConfig) -> Iterator[Problem]:
    """Attacks and partitions by class label, where samples have none."""
    if config.loss.by_class is not False:
        return
    name = name_of(config.loss)
    if isinstance(inner_attack(config.byzantine.attack), DataAttack):
        hint, offers = f"Choose an attack on vectors, as {FIXES}.", fixes(byzantine__attack="sign_flip")
        rule = f"needs class labels, which loss={name} has not"
        yield Problem("byzantine.attack", rule, hint=hint, fixes=offers)
    if config.partition.by_label:
        offers = (*fixes(partition="iid"), *fixes(partition="shared"))
        rule = f"goes by class labels, which loss={name} has not"
        yield Problem("partition", rule, hint=f"Set {FIXES}.", fixes=offers)


def _check_metrics(config: RunConfig) -> Iterator[Problem]:
    by_class = config.loss.by_class
    if by_class is not None:
        try:
            choose_metrics(config.metrics, name_of(config.loss), 1 if by_class else None)
        except MetricError as error:
            yield Problem("metrics", str(error).rstrip("."))


def _check_own_optimizer(config: RunConfig) -> Iterator[Problem]:
    """The optimizer of a program, which no file can name."""
    if isinstance(config.optimizer, OwnOptimizer) and config.optimizer.build_with is None:
        rule = "stands for the optimizer of a program, which gives it to `varangian.Server`"
        hint = f"Here it has a name: {', '.join(name for name in OPTIMIZERS if name != OWN)}."
        yield Problem("optimizer.name", rule, OWN, hint)


def _check_inner(config: RunConfig) -> Iterator[Problem]:
    """Two learning rates of local steps."""
    worker = config.worker
    if worker.inner is not None and worker.local_lr is not None:
        offers = (*fixes(worker__local_lr=None), *fixes(worker__inner=None))
        rule = "should be null with worker.inner, which has a learning rate of its own"
        yield Problem("worker.local_lr", rule, worker.local_lr, f"Set {FIXES}.", offers)


def _check_ports(config: RunConfig) -> Iterator[Problem]:
    server = config.server
    if server.data_port and server.data_port == server.port:
        offers = (*fixes(server__data_port=0), *fixes(server__data_port=None))
        hint = f"Set {FIXES}: 0 is any free port, and with null payloads go over gRPC."
        yield Problem("server.data_port", "should not be `server.port`", server.data_port, hint, offers)
    if server.enrol_port and server.enrol_port in (server.port, server.data_port):
        offers = (*fixes(server__enrol_port=0), *fixes(server__enrol_port=None))
        rule = "should not be `server.port` or `server.data_port`"
        hint = f"Set {FIXES}: 0 is any free port, and null takes no requests."
        yield Problem("server.enrol_port", rule, server.enrol_port, hint, offers)
    if server.metrics_port and server.metrics_port in (server.port, server.data_port, server.enrol_port):
        offers = (*fixes(server__metrics_port=0), *fixes(server__metrics_port=None))
        rule = "should not be `server.port`, `server.data_port` or `server.enrol_port`"
        hint = f"Set {FIXES}: 0 is any free port, and null has no page and no metrics."
        yield Problem("server.metrics_port", rule, server.metrics_port, hint, offers)


def _check_deadline(config: RunConfig) -> Iterator[Problem]:
    """A deadline that sets itself, between limits in the wrong order."""
    server = config.server
    if server.deadline == AUTO and server.deadline_floor > server.deadline_ceiling:
        rule = f"should be at most `server.deadline_ceiling`, {server.deadline_ceiling:g}"
        yield Problem("server.deadline_floor", rule, server.deadline_floor)


def _check_kept_rows(config: RunConfig) -> Iterator[Problem]:
    """Vectors that are to be kept, where the server never has whole ones."""
    if config.server.keep_rows and config.server.memory == "window":
        offers = (*fixes(server__keep_rows=0), *fixes(server__memory="rows"))
        rule = "should be 0 with server.memory=window, which stores no whole vectors"
        yield Problem("server.keep_rows", rule, config.server.keep_rows, f"Set {FIXES}.", offers)


def _check_window_rule(config: RunConfig) -> Iterator[Problem]:
    if config.server.memory != "window" or config.why_broken(config.workers):
        return
    if not streams(config.aggregator, config.workers):
        rule = "should be `rows` with this aggregator, which needs whole rows to weigh them"
        hint = (
            "Only the mean and coordinate-wise rules, as median, work with a window, and without mixings."
        )
        yield Problem("server.memory", rule, "window", hint)


def _check_no_root(config: RunConfig) -> Iterator[Problem]:
    if getattr(config.aggregator.rule, "needs_root", False):
        rule = "measures trust by a gradient of the server's own, which this server does not compute"
        yield Problem("aggregator", rule, hint="Choose another rule; as a library this one works.")


def _check_no_place(config: RunConfig) -> Iterator[Problem]:
    if any(map(by_place, (*config.aggregator.mix, config.aggregator.rule))):
        rule = "names a row by its place, and in a run the places change when a worker is missing"
        yield Problem("aggregator", rule, hint="Leave `pivot` null; as a library this one works.")


def _warn_unprotected(config: RunConfig) -> str:
    if config.f and not config.aggregator.robust:
        return (
            f"aggregator: this rule promises nothing against Byzantine workers, and f = {config.f} are "
            "declared. One of them is enough to choose the result."
        )
    return ""


def _warn_more_than_declared(config: RunConfig) -> str:
    count = config.byzantine.count
    if count > config.f:
        return (
            f"byzantine.count: {count} workers attack, but f = {config.f}: no rule promises anything then."
        )
    return ""


CHECKS = (
    Check(frozenset({"workers", "f", "server", "participation"}), check_answers),
    Check(frozenset({"workers", "f", "server", "participation"}), check_participation),
    Check(frozenset({"aggregator", "participation", "wire", "server"}), check_vectors),
    Check(frozenset({"participation", "server"}), check_machine, whole=True),
    Check(frozenset({"workers", "byzantine"}), _check_byzantine_count),
    Check(frozenset({"workers", "f", "byzantine"}), _check_attack, whole=True),
    Check(frozenset({"workers", "byzantine"}), _check_attack_possible),
    Check(frozenset({"byzantine", "backend"}), _check_wire),
    Check(frozenset({"loss", "byzantine", "partition"}), _check_labels),
    Check(frozenset({"loss", "metrics"}), _check_metrics),
    Check(frozenset({"optimizer"}), _check_own_optimizer, whole=True),
    Check(frozenset({"worker"}), _check_inner),
    Check(
        frozenset({"server", "worker", "participation", "aggregator", "model", "optimizer", "buffers"}),
        check_fragments,
    ),
    Check(frozenset({"server"}), _check_ports),
    Check(frozenset({"server"}), _check_deadline),
    Check(frozenset({"server"}), _check_kept_rows),
    Check(
        frozenset(
            {"workers", "f", "server", "aggregator", "participation", "evaluate", "model", "weights"}
            | {"weights_cap"}
        ),
        check_gate,
    ),
    Check(frozenset({"workers", "weights", "weights_cap", "participation"}), check_weights),
    Check(frozenset({"weights", "partition"}), check_dealt),
    Check(frozenset({"weights", "aggregator"}), check_form),
    Check(frozenset({"workers", "f", "weights", "weights_cap"}), check_cap),
    Check(
        frozenset({"workers", "f", "server", "aggregator", "participation", "weights", "weights_cap"}),
        check_guarantee,
    ),
    Check(frozenset({"aggregator"}), _check_no_root),
    Check(frozenset({"aggregator"}), _check_no_place),
    Check(frozenset({"workers", "f", "server", "aggregator"}), _check_window_rule),
    Check(frozenset({"server", "participation"}), check_window),
    Check(frozenset({"server"}), check_rows_folder),
    Check(frozenset({"workers", "f", "server", "participation", "buffers"}), check_buffers),
    Check(frozenset({"byzantine", "worker", "participation"}), check_mimic_momentum),
    Check(
        frozenset({"seed", "workers", "f", "rounds", "server", "availability", "participation"}),
        check_attendance,
    ),
    Check(frozenset({"workers", "delays"}), check_delays),
    Check(frozenset({"availability", "byzantine"}), check_mimic_attendance),
)
