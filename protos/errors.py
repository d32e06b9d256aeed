"""The error of everything that is refused."""

from __future__ import annotations

from varangian.protos.refusals import Refusal


class Refused(Exception):
    """A caller, or what the other end sent, is refused. Its text says what should be and what was found.

    Args:
        refusal: the code, and the rule that was not kept.
        found: a sentence that says what was found.
        values: what is filled in where the rule has names in braces.
    """

    def __init__(self, refusal: Refusal, found: str = "", **values: float) -> None:
        self.refusal = refusal
        super().__init__(f"{refusal.sentence.format(**values)} {found}".rstrip())
