"""Finding: one line of the report; and a limit for work that may hang."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from varangian.protos.text import escape

T = TypeVar("T")

Result = Literal["PASSED", "NOTE", "FAIL"]
PASSED: Result = "PASSED"
NOTE: Result = "NOTE"
"""It works, but there is something to know."""
FAIL: Result = "FAIL"
LONGEST = 2000
"""Characters of a sentence, which may have paths in it."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    result: Result
    sentence: str
    todo: str = ""
    """What to do about it."""

    @property
    def passed(self) -> bool:
        return self.result == PASSED

    @property
    def text(self) -> str:
        """The sentences, safe to print: a part of them may come from the other end."""
        sentence = self.sentence if not self.todo or self.sentence.endswith(".") else f"{self.sentence}."
        return escape(f"{sentence} {self.todo}".rstrip(), LONGEST)

    def __str__(self) -> str:
        return f"{self.result:<6}  {self.what:<12}  {self.text}"


def passed(what: str, sentence: str) -> Finding:
    return Finding(what, PASSED, sentence)


def note(what: str, sentence: str, todo: str = "") -> Finding:
    return Finding(what, NOTE, sentence, todo)


def fail(what: str, sentence: str, todo: str = "") -> Finding:
    return Finding(what, FAIL, sentence, todo)


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of work that may hang, as on a name server or a disk that is far away.

    Raises:
        TimeoutError: it takes longer. Its thread is left behind, and does not keep the process alive.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def answer() -> None:
        try:
            answers.put((work(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=answer, name="varangian-doctor", daemon=True).start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]
