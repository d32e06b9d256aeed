"""Fixes: a suggestion is made only if it was tried and solves its problem without a new one.

A check offers changes of single settings as `Problem.fixes`, with `{fixes}` in its hint where they go. Here
each is applied to the settings that the user wrote, and all checks run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from varangian.config.overrides import Assignment, apply_overrides
from varangian.registry import ConfigError, Problem

Settings: TypeAlias = Mapping[str, Any]
Check: TypeAlias = Callable[[Settings], Iterable[Problem]]
"""From settings to everything that is wrong with them."""


def try_fixes(
    problems: Sequence[Problem], settings: Settings, check: Check, groups: Mapping[str, str | None]
) -> list[Problem]:
    """The problems, with those suggestions in their hints that solve them and cause no others."""
    known = {(problem.path, problem.rule) for problem in problems}

    def works(problem: Problem, path: str, value: Any) -> bool:
        try:
            changed = apply_overrides(settings, [Assignment(path, value, "")], groups)
        except ConfigError:
            return False
        left = {(after.path, after.rule) for after in check(changed)}
        return left <= known - {(problem.path, problem.rule)}

    def working(problem: Problem) -> Iterator[str]:
        for fix in problem.fixes:
            for value in fix.values:
                if works(problem, fix.path, value):
                    yield fix.as_typed(value)
                    break

    return [problem.with_fixes([*working(problem)]) for problem in problems]
