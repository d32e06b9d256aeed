"""An audit of the ranks that compute for others: some columns of each are computed again by all.

A rank owns a share of the columns, and the others take its word for distances and the update there. With an
audit it first says what it has measured in each of B blocks of its columns, and what has arrived. Only then
do all ranks draw one of the blocks together, by numbers that each had committed to before; they show their
gradients there, and everybody computes this block again. So a share of 1 / B of the columns is checked in
each step, and a rank that bends k of its blocks is found in one step with probability k / B.

n  ranks     B  blocks of the columns of a rank     p  pieces of a gradient, as buckets
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from varangian.aggregators.rows import Rows
from varangian.aggregators.streaming.sharded import Decision, Measured
from varangian.torch.columns import sum_of_bits

CHECKSUM = 1 << 40
"""Checksums are below: the sum of those of thousands of ranks is a whole number in float64."""
COMMITMENT = 4
"""Numbers of 32 bits of a commitment."""
CLOSE = 1e-6
"""Part of the largest squared distance by which those of a block may differ between machines."""

Measure = Callable[[Rows, Tensor | None], Measured]
"""Measures some columns of all rows, from the same columns of the reference."""


class Piece(Protocol):
    """What is asked of a bucket on its way."""

    @property
    def own(self) -> Tensor:
        """The gradient of this rank, (d,)."""
        ...

    @property
    def memory(self) -> Tensor:
        """(n s,): the rows of this shard, or the update."""
        ...

    @property
    def d(self) -> int: ...
    @property
    def s(self) -> int: ...
    def rows(self, n: int, /) -> Rows: ...


P = TypeVar("P", bound=Piece)


@dataclass
class Published:
    """What all ranks have said of their blocks in a step."""

    blocks: Tensor
    """(n, p, B, (n+2)^2 + 2 n): products, invalid rows, checksums of rows."""
    commitments: Tensor
    """(n, 4)."""
    nonce: int

    @property
    def total(self) -> Measured:
        """The sum over all ranks, pieces and blocks."""
        n = len(self.blocks)
        numbers = self.blocks.sum((0, 1, 2))
        return Measured(numbers[: -2 * n].view(n + 2, n + 2), numbers[-2 * n : -n])

    @property
    def checksums(self) -> Tensor:
        """Of each gradient, (n,)."""
        n = len(self.blocks)
        return self.blocks[..., -n:].sum((0, 1, 2)) % CHECKSUM


def checksums_of(rows: Rows) -> Tensor:
    """Of the bits of each row, (n,) int64."""
    return torch.stack([sum_of_bits(row) for row in rows.vectors])


def publish(
    pieces: Sequence[P],
    blocks: int,
    group: dist.ProcessGroup,
    measure: Callable[[P, Rows, slice], Measured],
) -> Published:
    """Measure the blocks of this rank, and tell the others. Every rank calls it.

    Args:
        pieces: whose rows have arrived.
        blocks: B.
        group: the ranks.
        measure: measures some columns of the shard of this rank.
    """
    n, rank = group.size(), group.rank()
    said: list[Tensor] = []
    for piece in pieces:
        mine = owned(piece, rank)
        for block in range(blocks):
            place = part(mine, block, blocks)
            if place.start == place.stop:
                said.append(torch.zeros((n + 2) ** 2 + 2 * n, dtype=torch.float64))
                continue
            rows = Rows(tuple(row[place] for row in piece.rows(n).vectors))
            found = measure(piece, rows, place)
            checksums = (checksums_of(rows).cpu() % CHECKSUM).double()
            said.append(torch.cat([found.products.flatten(), found.invalid, checksums]))
    nonce = secrets.randbits(62)
    numbers = torch.cat([*said, commitment(nonce)]).to(pieces[0].memory.device)
    heard = torch.stack(_gathered(numbers, group)).cpu()
    size = (len(pieces), blocks, (n + 2) ** 2 + 2 * n)
    return Published(heard[:, :-COMMITMENT].reshape(n, *size), heard[:, -COMMITMENT:], nonce)


def examine(
    pieces: Sequence[P],
    published: Published,
    decision: Decision,
    group: dist.ProcessGroup,
    measure: Measure,
    reference: Callable[[P, slice], Tensor | None],
) -> dict[int, str]:
    """Compute one block of every rank again. Every rank calls it, once the update is there.

    Args:
        pieces: with the update in their memory.
        published: by all ranks, before.
        decision: from the total of what was published.
        group: the ranks.
        measure: as the owner of a block has measured it.
        reference: some columns of the last update.

    Returns:
        Ranks that have computed or said something wrong, and what: the same on every rank.
    """
    n = group.size()
    device = pieces[0].memory.device
    received = torch.stack([_received(pieces, owner) for owner in range(n)])
    mine = torch.cat([torch.tensor([published.nonce]), received]).to(device)
    heard = torch.stack(_gathered(mine, group)).cpu()
    found: dict[int, str] = {}
    for rank, said in enumerate(heard):
        if not torch.equal(commitment(int(said[0])), published.commitments[rank]):
            found[rank] = "drew another number than the one that it had committed to"
    different = heard[:, 1:] != heard[:, 1:].mode(0).values
    found |= _liars(different.T, "gave other ranks another update", "says that it got another update")
    seed = hashlib.blake2b(heard[:, 0].contiguous().numpy().tobytes(), digest_size=8).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(seed) >> 1)
    disputed = torch.zeros(n, n, dtype=torch.bool)
    for place, piece in enumerate(pieces):
        block = int(torch.randint(published.blocks.shape[2], (), generator=rng))
        for owner, rows, columns in _shown(piece, block, published.blocks.shape[2], group):
            said = published.blocks[owner, place, block]
            disputed[owner] |= (checksums_of(rows).cpu() % CHECKSUM).double() != said[-n:]
            again = measure(rows, reference(piece, columns))
            if not torch.equal(again.invalid, said[-2 * n : -n]) or not _as_far(
                again.products, said[: -2 * n].view(n + 2, n + 2)
            ):
                found.setdefault(owner, "measured other distances in its columns than there are")
            update = decision.apply(rows, reference(piece, columns))
            if not _alike(
                update, piece.memory[columns], Rows(tuple(rows.vectors[i] for i in decision.kept))
            ):
                found.setdefault(owner, "computed another update in its columns than the rule gives")
    liars = _liars(disputed, "says that other gradients arrived than were sent", "sent another gradient")
    # Whoever measured something else may only have got something else.
    return liars or found


def owned(piece: Piece, rank: int) -> int:
    """How many columns of a piece a rank owns."""
    return max(0, min(piece.s, piece.d - rank * piece.s))


def part(columns: int, block: int, blocks: int) -> slice:
    """The columns of a block, of so many."""
    return slice(block * columns // blocks, (block + 1) * columns // blocks)


def commitment(nonce: int) -> Tensor:
    """To a number, as numbers that float64 holds exactly."""
    digest = hashlib.blake2b(nonce.to_bytes(8, signed=True), digest_size=4 * COMMITMENT).digest()
    numbers = [int.from_bytes(digest[4 * i : 4 * i + 4]) for i in range(COMMITMENT)]
    return torch.tensor(numbers, dtype=torch.float64)


def _shown(
    piece: Piece, block: int, blocks: int, group: dist.ProcessGroup
) -> Iterator[tuple[int, Rows, slice]]:
    """The gradients of all ranks in a block of each owner: the owner, the rows and their columns."""
    n = group.size()
    places: list[slice] = []
    for owner in range(n):
        inside, start = part(owned(piece, owner), block, blocks), owner * piece.s
        places.append(slice(start + inside.start, start + inside.stop))
    gathered = _gathered(torch.cat([piece.own[place] for place in places]), group)
    at = 0
    for owner, place in enumerate(places):
        stop = at + place.stop - place.start
        if stop > at:
            yield owner, Rows(tuple(row[at:stop] for row in gathered)), place
        at = stop


def _received(pieces: Sequence[Piece], owner: int) -> Tensor:
    """A checksum of the update that an owner has given this rank."""
    found = torch.zeros((), dtype=torch.int64)
    for piece in pieces:
        start = owner * piece.s
        found += sum_of_bits(piece.memory[start : start + owned(piece, owner)]).cpu()
    return found % CHECKSUM


def _liars(disputed: Tensor, of_owner: str, of_other: str) -> dict[int, str]:
    """Who lies, where owner j and rank i contradict each other in `disputed[j, i]`.

    A rank that contradicts more than half of the owners does so itself; otherwise it is the owner.
    """
    n = len(disputed)
    others = [i for i in range(n) if 2 * int(disputed[:, i].sum()) > n]
    left = disputed.clone()
    left[:, others] = False
    found = dict.fromkeys(left.any(1).nonzero().flatten().tolist(), of_owner)
    return found | dict.fromkeys(others, of_other)


def _as_far(one: Tensor, other: Tensor) -> bool:
    """Whether products about two centres, which need not be the same, are of points equally far apart."""
    apart = [p.diag()[:, None] + p.diag() - 2 * p for p in (one, other)]
    scale = float(apart[0].abs().max())
    return bool(((apart[0] - apart[1]).abs() <= CLOSE * scale).all())


def _alike(one: Tensor, other: Tensor, rows: Rows) -> bool:
    """Whether two updates are the same but for rounding; also where a rule gave the same NaN twice."""
    largest = max((float(row.abs().max()) for row in rows.vectors), default=0.0)
    error = 8 * len(rows.vectors) * torch.finfo(other.dtype).eps * largest
    return bool(torch.isclose(one.to(other.dtype), other, rtol=0.0, atol=error, equal_nan=True).all())


def _gathered(mine: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    found = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(found, mine, group=group)
    return found
