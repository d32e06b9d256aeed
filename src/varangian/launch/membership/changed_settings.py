"""Settings of a run with other workers, or another f, than at its start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from varangian.config import RunConfig
from varangian.config.build import policy
from varangian.config.load import check
from varangian.registry import ConfigError
from varangian.server.rounds.membership import MemberChange


def with_members(config: RunConfig, names: Iterable[str], f: int) -> RunConfig:
    """The settings with these workers and this f, after all checks: quorum and rule are as they follow.

    A worker that `weights` does not name gets the least of them. Each part of the rule that takes an f gets
    the new one, unless it has one of its own. Who attacks is not told to a server, and is left out.

    Raises:
        ConfigError: with every problem found.
    """
    plain, names = config.resolved(), sorted(names)
    plain |= {"workers": names, "names": None, "f": f}
    if isinstance(config.weights, Mapping):
        # Whoever was not there when the weights were given has the least of all.
        least = min(config.weights.values())
        plain["weights"] = dict.fromkeys(names, least) | plain["weights"]
    plain["aggregator"] = _with_f(plain["aggregator"], config.f, f)
    plain["byzantine"] = {}
    checked = check(plain, whole=False)
    if checked.config is None or checked.problems:
        raise ConfigError(checked.problems)
    # It may be one that a program made, which plain settings do not hold.
    return checked.config.model_copy(update={"optimizer": config.optimizer})


def change_of(
    config: RunConfig, gone: Mapping[str, str], expelled: Iterable[str], by: Iterable[str]
) -> MemberChange:
    """The change to these settings, for the coordinator.

    Args:
        config: with the workers after it.
        gone: how each worker has left that does.
        expelled: those of whom nothing counts any more.
        by: what was asked for, and by whom.
    """
    return MemberChange(
        policy(config),
        config.aggregator,
        config.participation.round_size(config.workers, config.f),
        config.participation.row_slots(config.workers, config.f),
        dict(gone),
        frozenset(expelled),
        tuple(by),
        config.worker_weights,
    )


def _with_f(spec: Any, before: int, after: int) -> Any:
    """A part of an aggregator, as a configuration has it, with another f for that of the run."""
    if isinstance(spec, Mapping):
        return {
            name: after if name == "f" and value == before else _with_f(value, before, after)
            for name, value in spec.items()
        }
    return [_with_f(part, before, after) for part in spec] if isinstance(spec, list) else spec
