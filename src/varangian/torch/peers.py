"""The ranks of a process group: who they are, and whether all were told the same.

What is exchanged is bytes of a fixed length, and never a pickle.
"""

from __future__ import annotations

import hashlib
import math
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

DIGEST, HOST, DEVICE, NAME, WEIGHT = 16, 64, 16, 96, 8
"""Bytes of the digest of a setting, of the names of a host, of a device and of a rank, and of a weight."""
TOLD = (
    "aggregator",
    "f",
    "seed",
    "on_error",
    "momentum",
    "per_bucket",
    "audit",
    "weights",
    "leave_out_opposed",
    "parameters",
)
"""What has to be the same on all ranks."""


@dataclass(frozen=True)
class Peer:
    """Where a rank is, in its own words; characters that a terminal could take for commands are gone."""

    host: str
    device: str
    name: str = ""
    """By which it is known where its place may change; empty where it is known by its place."""
    weight: float = math.nan
    """What its gradient weighs, where each says so for itself; else NaN."""


def introduce(
    told: Mapping[str, str],
    group: dist.ProcessGroup,
    device: torch.device,
    name: str = "",
    weight: float = math.nan,
) -> list[Peer]:
    """All ranks of the group, in order. Every rank calls it.

    Args:
        told: what each of `TOLD` is here.
        group: the ranks.
        device: where tensors of the group are.
        name: of this rank, as of `Peer`.
        weight: of this rank, as of `Peer`.

    Raises:
        ValueError: on every rank, if they were not told the same.
    """
    digests = [hashlib.blake2b(told[name].encode(), digest_size=DIGEST).digest() for name in TOLD]
    texts = [(socket.gethostname(), HOST), (str(device), DEVICE), (name, NAME)]
    says = b"".join([*digests, *(_fixed(text, size) for text, size in texts), struct.pack("<d", weight)])
    mine = torch.frombuffer(bytearray(says), dtype=torch.uint8).to(device)
    found = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(found, mine, group=group)
    said = [_bytes(tensor) for tensor in found]
    for place, what in enumerate(TOLD):
        heard = [each[place * DIGEST : (place + 1) * DIGEST] for each in said]
        if len({*heard}) > 1:
            groups = " and ".join(_ranks(heard, digest) for digest in dict.fromkeys(heard))
            raise ValueError(
                f"{what}: should be the same on all ranks. Found different values on {groups}; "
                f"here it is {told[what][:200]}."
            )
    return [_peer(each[len(TOLD) * DIGEST :]) for each in said]


def _peer(said: bytes) -> Peer:
    texts, at = list[str](), 0
    for size in (HOST, DEVICE, NAME):
        texts.append(_text(said[at : at + size]))
        at += size
    host, device, name = texts
    (weight,) = struct.unpack("<d", said[at : at + WEIGHT])
    return Peer(host or "?", device or "?", name, weight)


def _ranks(heard: Sequence[bytes], digest: bytes) -> str:
    ranks = [str(rank) for rank, each in enumerate(heard) if each == digest]
    shown = ", ".join(ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _fixed(text: str, size: int) -> bytes:
    return text.encode(errors="replace")[:size].ljust(size, b"\0")


def _text(found: bytes) -> str:
    text = found.rstrip(b"\0").decode("ascii", errors="replace")
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.cpu().tolist())
