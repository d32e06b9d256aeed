"""The page: its files, which are the same for every run, and the paths under which they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from varangian.server.monitoring.http import JSON, Answer, tagged

ASSETS = Path(__file__).parent / "assets"
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Files of the page by path. They hold nothing of a run, so they need no token."""


def page_routes() -> dict[str, Callable[[], Answer]]:
    """Who answers the paths of the page."""

    def served(answer: Answer) -> Callable[[], Answer]:
        return lambda: answer

    return {
        path: served(tagged((ASSETS / name).read_bytes(), kind)) for path, (name, kind) in FILES.items()
    }


def state_answer(state: bytes) -> Answer:
    """The state of a run, as `/state.json` answers it."""
    return tagged(state, JSON)
