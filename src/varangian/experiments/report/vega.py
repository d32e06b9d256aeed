"""Vega, the chart library of the report: its JavaScript as text, from vl-convert.

vl-convert has Vega inside and bundles it anew on every call, which takes seconds; so the result is kept in
the cache folder of the user.
"""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import version
from pathlib import Path

from varangian.files import write_atomically

SNIPPET = "window.vegaEmbed=vegaEmbed;"
PRIVATE = 0o600
OTHERS_WRITE = 0o022


def javascript() -> str:
    """Vega-Embed with Vega and Vega-Lite, as a script that can stand inside a page."""
    import vl_convert

    path = _cache() / f"vega-{version('vl-convert-python')}.js"
    found = _own_file(path)
    if found is None:
        bundle = str(vl_convert.javascript_bundle(SNIPPET))
        # What would end the script element; inside strings of JavaScript both spellings are the same.
        found = bundle.replace("</script", r"<\/script").replace("<!--", r"\x3c!--")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, found.encode(), PRIVATE)
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "varangian"


def _own_file(path: Path) -> str | None:
    """The text of a file that nobody else can have written."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_uid != os.getuid() or state.st_mode & OTHERS_WRITE:
                return None
            return file.read().decode()
    except (OSError, UnicodeDecodeError):
        return None
