"""The question of `varangian advise`: the settings of a run, as far as they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from varangian.config import RunConfig, loads
from varangian.config.load import check
from varangian.experiments.advice.evidence import skew_of
from varangian.registry import ConfigError, Problem

Threat = Literal["any", "labels"]
"""`any`: attackers send whatever they like. `labels`: their program is honest and some of their labels are
wrong."""


@dataclass(frozen=True)
class Question:
    """A run for which a rule is wanted. What is None is not known."""

    settings: Mapping[str, Any]
    """As written, without an aggregator."""
    config: RunConfig
    """The same with the mean, which has no conditions."""
    aggregator: Any
    """The one that was written, in the form of a configuration."""
    declared: int
    """The f that the server would be told."""
    partition: Any
    momentum: float | None
    data: str | None
    parameters: int | None
    """d, numbers in the model."""
    threat: Threat

    @property
    def n(self) -> int:
        return self.config.workers

    @property
    def f(self) -> int:
        """Workers that may attack."""
        return self.config.f

    @property
    def skew(self) -> float | None:
        return None if self.partition is None else skew_of(self.partition)

    @property
    def weighed(self) -> bool:
        """Whether workers have weights, whether they are known or not."""
        return self.config.weights is not None

    @property
    def weights(self) -> list[float] | None:
        """The weights of the workers; None where all are equal or not known."""
        weights = self.config.worker_weights
        return None if weights is None or len({*weights.values()}) == 1 else [*weights.values()]

    @property
    def budget(self) -> float | None:
        """The share of the weight that the f heaviest have; None as above."""
        weights = self.weights
        return None if weights is None else sum(sorted(weights)[self.n - self.f :]) / sum(weights)

    @property
    def participation(self) -> str:
        (name,) = self.config.resolved()["participation"]
        return str(name)

    def check(self, aggregator: Any, f: int | None = None) -> tuple[RunConfig | None, str]:
        """The run with a rule and a declared f; or why it would not start."""
        settings = {**self.settings, "aggregator": aggregator, "f": self.f if f is None else f}
        checked = check(settings, whole=False)
        if checked.config is None or checked.problems:
            return None, checked.problems[0].rule
        return checked.config, ""

    def plain(self) -> dict[str, Any]:
        return {
            "workers": self.n,
            "f": self.f,
            "declared": self.declared,
            "partition": self.partition,
            "momentum": self.momentum,
            "participation": self.participation,
            "data": self.data,
            "parameters": self.parameters,
            "threat": self.threat,
        }


def ask(
    settings: Mapping[str, Any],
    *,
    declared: int | None = None,
    parameters: int | None = None,
    threat: Threat = "any",
) -> Question:
    """A question from settings; those that are not written are not known, but for `workers` and `f`.

    Args:
        settings: as in a configuration file.
        declared: the f that the server would be told; by default the setting `f`.
        parameters: numbers in the model.
        threat: what attackers can do.

    Raises:
        ConfigError: with every problem found in the settings, or more attackers than any rule can stand.
    """
    rest = {name: value for name, value in settings.items() if name not in ("aggregator", "byzantine")}
    config = loads({**rest, "aggregator": "mean"}, whole=False)
    declared = config.f if declared is None else declared
    problems = list[Problem]()
    if "aggregator" in settings:
        problems += check({**rest, "aggregator": settings["aggregator"]}, whole=False).invalid
    problems += _impossible("f", config.workers, config.f)
    if declared != config.f:
        problems += _impossible("--declared", config.workers, declared)
    if threat not in get_args(Threat):
        problems.append(Problem("threat", "should be `any` or `labels`", threat))
    if parameters is not None and parameters < 1:
        problems.append(Problem("parameters", "should be at least 1", parameters))
    if problems:
        raise ConfigError(problems)
    resolved = config.resolved()
    worker = rest.get("worker")
    return Question(
        settings=rest,
        config=config,
        aggregator=settings.get("aggregator"),
        declared=declared,
        partition=resolved["partition"] if "partition" in rest else None,
        momentum=config.worker.momentum if isinstance(worker, Mapping) and "momentum" in worker else None,
        data=next(iter(resolved["data"])) if "data" in rest else None,
        parameters=parameters,
        threat=threat,
    )


def _impossible(path: str, n: int, f: int) -> list[Problem]:
    if f >= 0 and n >= 2 * f + 1:
        return []
    if f < 0:
        return [Problem(path, "should be at least 0", f)]
    rule = (
        f"should be at most {(n - 1) // 2} for {n} workers: no rule stands as many attackers as honest ones"
    )
    return [Problem(path, rule, f, f"{f} need at least {2 * f + 1} workers.")]
