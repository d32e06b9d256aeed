"""Warnings about certificates for the page of a run: what ends soon, what has ended, what was revoked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from varangian.protos.text import escape
from varangian.server.identity.tls import SOON

LISTED = 5
"""Most workers that a sentence names."""


def certificate_warnings(
    ends: Mapping[str, float], revoked: Mapping[str, str], now: float | None = None
) -> list[str]:
    """A sentence for each kind of problem.

    Args:
        ends: the end of the certificate of each worker, in seconds since 1970.
        revoked: workers that are left out, with the reason: a certificate that was revoked, for one.
        now: seconds since 1970.
    """
    now = time.time() if now is None else now
    over = sorted(name for name, end in ends.items() if end <= now)
    soon = sorted((end, name) for name, end in ends.items() if now < end <= now + SOON)
    found = [f"{escape(name, 100)} is left out: {reason}." for name, reason in sorted(revoked.items())]
    if len(found) > LISTED:
        found = [f"{len(found)} workers are left out: {_names(sorted(revoked))}."]
    if over:
        found.append(f"The certificate of {_names(over)} has ended: renew it.")
    if soon:
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(soon[0][0]))
        first = "" if len(soon) == 1 else ", the first of them"
        found.append(
            f"The certificate of {_names(name for _, name in soon)}{first} ends at {until}: renew it."
        )
    return found


def _names(names: Iterable[str]) -> str:
    listed = [escape(name, 100) for name in names]
    more = len(listed) - LISTED
    return ", ".join(listed[:LISTED]) + (f" and {more} more" if more > 0 else "")
