"""Deterministic seeds: an independent random stream for each purpose, worker and round.

Everything random in a run starts from its seed and a purpose: ("batch", "w03", 17). So no order of calls
and no choice of process can change what a worker draws, and nothing ever touches torch's global generator.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import blake2b

import torch

_GLOBAL = threading.RLock()
"""Held while the global generators are in use: runs in several threads would draw from each other's."""


def stream_seed(seed: int, *purpose: str | int) -> int:
    """The 64-bit seed of a purpose; other purposes have unrelated ones."""
    text = json.dumps([seed, *purpose])  # unlike a join, never the same for two purposes
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh generator on the CPU, whatever device the numbers go to: devices draw differently."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))


@contextmanager
def globally_seeded(seed: int, *purpose: str | int, device: torch.device) -> Generator[None]:
    """Seed the global generators for code that knows no other (initialisation, dropout), then restore."""
    with _GLOBAL, _seeded(seed, purpose, device):
        yield


@contextmanager
def _seeded(seed: int, purpose: tuple[str | int, ...], device: torch.device) -> Generator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would queue a call with a traceback for devices not in use, every time.
        torch.default_generator.manual_seed(stream_seed(seed, *purpose))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(stream_seed(seed, *purpose))
        yield
