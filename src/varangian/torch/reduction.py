"""A step of the robust reduction: columns of all gradients meet, one decision, the update comes back.

n  ranks     d  numbers of a bucket     s  of them in the shard of one rank, the last ones possibly fewer

Each rank owns the same shard of every bucket: it gets these columns of all n gradients, so that no rank
ever holds whole ones. What depends on geometry is decided once a step, from sums over all shards.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Variable

from varangian.aggregators import AggregationError, Aggregator, spec_of
from varangian.aggregators.base import uses_reference
from varangian.aggregators.gram import precision_of
from varangian.aggregators.rows import FLOATS, Rows, RowsError
from varangian.aggregators.streaming.sharded import Decision, Measured, decide, measure, refuses
from varangian.frameworks import Callbacks, aggregator_of, check_state, generator_of
from varangian.torch import arguments
from varangian.torch.audit import CHECKSUM, Published, checksums_of, examine, publish
from varangian.torch.columns import blocks, finite, squared_distances
from varangian.torch.opposition import Opposition
from varangian.torch.peers import Peer, introduce
from varangian.torch.steps import Step, SuspectRank, Suspicion, appender

_all_gather: Callable[..., dist.Work | None] = getattr(
    dist, "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
)
"""Under its newer name, where torch has it."""
VERSION = 4
"""Of the state."""
TAG = 0x5641
"""Of the messages that carry the update of a bucket; those of other buckets have the next ones."""


class Bucket(Protocol):
    """What is asked of a bucket of gradients: `torch.distributed.GradBucket`."""

    def index(self) -> int: ...
    def buffer(self) -> Tensor: ...
    def parameters(self) -> list[Tensor]: ...
    def is_last(self) -> bool: ...


@dataclass(eq=False)
class _Piece:
    """One bucket on its way."""

    key: tuple[int, ...]
    """Its parameters: buckets are made anew after the first step, so their numbers mean nothing."""
    parameters: list[Tensor]
    d: int
    s: int
    mine: int
    """Columns of the shard of this rank."""
    own: Tensor
    """(d,): the gradient of this rank."""
    memory: Tensor
    """(n s,): the rows of this shard; then the update, unless that is written in the place of `own`."""
    in_place: bool
    """Whether the update is written over the gradient of this rank."""
    arriving: dist.Work
    future: torch.futures.Future[Tensor]
    measured: Measured | None = None
    """What this rank knows of it, once its rows are here."""
    checksums: Tensor | None = None
    """Of these columns, (n,) int64."""

    @property
    def update(self) -> Tensor:
        """(d,), once it is there."""
        return self.own if self.in_place else self.memory[: self.d]

    def rows(self, n: int) -> Rows:
        """The columns of this shard, of all ranks."""
        return Rows(self.memory[: n * self.mine].view(n, self.mine).unbind())


@dataclass(eq=False)
class _Settled:
    """What was decided for some buckets together, while their update is on its way."""

    pieces: list[_Piece]
    total: Measured
    checksums: Tensor
    """Of these columns of each gradient, (n,)."""
    decision: Decision | None = None
    error: Exception | None = None
    squares: Tensor | None = None
    """Squared distances of the rows from the update, (n,), where the decision has none."""
    exchanged: list[dist.Work | None] = field(default_factory=list["dist.Work | None"])
    published: Published | None = None
    """With an audit."""
    accused: dict[int, str] = field(default_factory=dict[int, str])
    """Ranks that an audit has found to compute wrongly, and what."""


@dataclass(eq=False)
class _Group:
    """The process group, once it is known."""

    group: dist.ProcessGroup
    """The ranks that hold the same columns, one for each row."""
    whole: dist.ProcessGroup
    """The ranks that hold all columns of all rows: the same ones, or those of all shards of a model."""
    n: int
    rank: int
    peers: list[Peer]
    aggregator: Aggregator
    names: dict[int, str]
    """Of parameters, by their identity."""
    named: bool
    """Whether these are names of a model; else numbers, in the order in which parameters came."""
    suspicion: Suspicion
    opposition: Opposition
    records: list[Callable[[Step], None]] = field(default_factory=list[Callable[[Step], None]])


class Reduction:
    """The state of the communication hook: what is settled once, and what is remembered between steps.

    Args:
        aggregator: by name, as `nnm+trimmed_mean`, as a mapping of a configuration, or an `Aggregator`.
        f: how many ranks may be faulty; of an `Aggregator` its own counts.
        process_group: the ranks; by default that of the model, or else all.
        seed: of the mixings that draw at random; the same on all ranks.
        on_step: called with the record of each step, on every rank, once gradients are written; what it
            raises is logged, once, and the step goes on.
        log: a file to which rank 0 appends each record as a line of JSON.
        momentum: beta of the momentum m <- beta m + (1 - beta) g of each rank, which is reduced in the
            place of its gradient g; 0 reduces gradients. It averages out the noise of batches, in which
            wrong ranks hide: "Learning from History for Byzantine Robust Optimization" (Karimireddy et al.,
            2021). The optimizer then needs none of its own, and 1 / (1 - beta) times the learning rate.
        per_bucket: decide about each bucket by itself, while later ones are on their way. That is another
            rule, which may believe other ranks in each bucket; and which parameters share one is up to DDP.
        audit: the share of the columns of each rank, in each step, that all ranks compute again to see that
            it computes for them what it should; 0 takes its word. A rank that does not is named in the
            record, and the step has no update.
        suspect_after: steps in a row without influence after which a rank is a suspect.
        on_suspect: called with a suspect on every rank; by default rank 0 and the suspect warn.
        on_error: what happens where a step has no update, because too many gradients are not finite. In
            both cases gradients are NaN; with "raise" there is an `AggregationError` on every rank, too,
            with "nan" none: a gradient scaler, or a check of the loop, sees them.
        weights: what the gradient of each rank weighs, in the order of ranks, as samples of its batch; None
            for all the same. f becomes the weight of the f heaviest.
        leave_out_opposed: leave out ranks that are opposed to the others, from the next step on and as long
            as they are; together with those that are not finite no more than f, each of which counts as one
            of the f. Not where a rank may have data that no other has.

    Raises:
        ConfigError: the aggregator is none.
        ValueError: it cannot work on shards, or another argument is wrong.
    """

    def __init__(
        self,
        aggregator: str | Mapping[str, object] | Aggregator = "nnm+trimmed_mean",
        f: int = 1,
        *,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
        on_step: Callable[[Step], None] | None = None,
        log: str | Path | None = None,
        momentum: float = 0.0,
        per_bucket: bool = False,
        audit: float = 0.0,
        suspect_after: int = 10,
        on_suspect: Callable[[SuspectRank], None] | None = None,
        on_error: Literal["raise", "nan"] = "raise",
        weights: Sequence[float] | None = None,
        leave_out_opposed: bool = False,
    ) -> None:
        arguments.check(
            {
                "f": f,
                "process_group": process_group,
                "seed": seed,
                "on_step": on_step,
                "log": log,
                "momentum": momentum,
                "per_bucket": per_bucket,
                "audit": audit,
                "suspect_after": suspect_after,
                "on_suspect": on_suspect,
                "on_error": on_error,
                "leave_out_opposed": leave_out_opposed,
            }
        )
        self._leave_out_opposed = leave_out_opposed
        self._weights = None if weights is None else arguments.numbers("weights", weights)
        self._aggregator = _checked(aggregator, f)
        self._process_group = process_group
        self._seed = seed
        self._on_step, self._log = on_step, log
        self._momentum = momentum
        self._momenta: dict[int, Tensor] = {}
        """Of this rank, by parameter, flat."""
        self._per_bucket = per_bucket
        self._blocks = round(1 / audit) if audit else 0
        """In which the columns of each rank are measured; 0 without an audit."""
        self._suspect_after, self._on_suspect = suspect_after, on_suspect
        self._on_error = on_error
        self._group: _Group | None = None
        self._pieces: list[_Piece] = []
        self._settled: list[_Settled] = []
        self._memory: dict[tuple[int, ...], Tensor] = {}
        self._reference: dict[int, Tensor] = {}
        """The last update by parameters, flat as in their bucket; empty where no part asks for it."""
        self._restored: dict[str, Tensor] = {}
        self._restored_momenta: dict[str, Tensor] = {}
        self._restored_of: int | None = None
        """The rank whose state was loaded, where it is that of one rank alone."""
        self._seen: tuple[list[int], list[list[int]]] = ([], [])
        """What `Suspicion.restore` takes."""
        self._opposed: dict[str, list[float]] = {}
        """What `Opposition.restore` takes."""
        self._before: Tensor | None = None
        """The checksums of the step before."""
        self._callbacks = Callbacks()
        self._step = 0
        self._last: Step | None = None
        parts = (*self._aggregator.mix, self._aggregator.rule)
        self._refers = any(map(uses_reference, parts))

    @property
    def aggregator(self) -> Aggregator:
        return self._aggregator

    @property
    def last(self) -> Step | None:
        """The record of the last step."""
        return self._last

    @property
    def reference(self) -> dict[str, Tensor]:
        """The last update by names of parameters, flat; empty where no part measures from it."""
        if self._restored:
            return dict(self._restored)
        names = {} if self._group is None else self._group.names
        return {names[key]: value for key, value in self._reference.items()}

    def generator(self, step: int) -> torch.Generator:
        """The randomness of a step."""
        return generator_of(self._seed, step)

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on: plain values and tensors, which are the same on every rank.

        But for `momentum`, which is that of this rank, and tensors of sharded models: `rank` says whose
        they are; None where there are none.
        """
        left_out, faulty = self._seen
        seen = {"left_out": [*left_out], "faulty": [[*steps] for steps in faulty]}
        opposed = self._opposed
        if self._group is not None:
            seen, opposed = self._group.suspicion.state(), self._group.opposition.state()
        reference = {name: value.clone() for name, value in self.reference.items()}
        names = {} if self._group is None else self._group.names
        momentum = {names[key]: m.clone() for key, m in self._momenta.items()}
        momentum = {**self._restored_momenta, **momentum}
        rank = self._restored_of
        if self._group is not None:
            sharded = self._group.whole is not self._group.group
            rank = self._group.whole.rank() if momentum or (reference and sharded) else None
        return {
            "version": VERSION,
            "step": self._step,
            "seed": self._seed,
            **seen,
            "opposition": {name: [*values] for name, values in opposed.items()},
            "rank": rank,
            "reference": reference,
            "momentum": momentum,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, with the same bits.

        Every rank loads its own, or, where it has no `rank`, that of any.

        Raises:
            ValueError: it is no such state, was made with another seed, by another rank, or has tensors
                that are not those of the parameters here.
        """
        needed = {"step", "left_out", "faulty", "opposition", "rank", "reference", "momentum"}
        check_state(state, needed, VERSION, self._seed)
        try:
            step, left_out = int(state["step"]), [*map(int, state["left_out"])]
            of = None if state["rank"] is None else int(state["rank"])
            faulty = [[*map(int, steps)] for steps in state["faulty"]]
            opposed = {str(name): [*map(float, values)] for name, values in state["opposition"].items()}
            momenta, reference = (
                {str(name): value.detach().clone() for name, value in state[which].items()}
                for which in ("momentum", "reference")
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"state: should be what state_dict() returned. It is not: {error}.") from error
        if self._group is not None:
            self._check_restored(self._group, of, {"reference": reference, "momentum": momenta})
            of = None
        self._step, self._seen, self._opposed = step, (left_out, faulty), opposed
        self._before, self._restored_of = None, of
        self._momenta, self._restored_momenta = {}, momenta
        self._reference, self._restored = {}, reference
        if self._group is not None:
            self._group.suspicion.restore(*self._seen)
            self._group.opposition.restore(self._opposed)

    def _check_restored(
        self, group: _Group, of: int | None, tensors: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        """See that a state is that of this rank, and of these parameters."""
        if of is not None and of != group.whole.rank():
            sharded = group.whole is not group.group
            left_out = '"rank": None, "momentum": {}' + (', "reference": {}' if sharded else "")
            raise ValueError(
                f"state.rank: should be {group.whole.rank()}, this rank, as momentum and shards are those "
                f"of one rank. Found {of}. Save state_dict() on every rank, and load each on its own; or "
                f"begin without them: {{**state, {left_out}}}."
            )
        known = {*group.names.values()}
        for which, found in tensors.items():
            if group.named and (others := sorted({*found} - known)):
                raise ValueError(
                    f"state.{which}: should have names of parameters that are trained. Found "
                    f"{others[0]!r}, which is none."
                )

    def attach(
        self,
        parameters: Sequence[tuple[str, Tensor]],
        device: torch.device,
        group: dist.ProcessGroup | None = None,
        *,
        whole: dist.ProcessGroup | None = None,
        named: bool = True,
        name: str = "",
        weight: float | None = None,
    ) -> None:
        """Meet the other ranks. Every rank calls it, with the same parameters.

        Args:
            parameters: with their names, as far as they are here.
            device: of tensors that are exchanged.
            group: the ranks that have the same ones, a row each.
            whole: the ranks that have all parameters together, where those of `group` have a shard.
            named: whether the names are known.
            name: of this rank, where it may have another place when ranks meet again.
            weight: of the gradient of this rank, where each rank says its own.

        Raises:
            ValueError: the aggregator has no guarantee for so many ranks, a parameter has a type that
                cannot be aggregated, the ranks were not told the same, or a state was loaded before that
                is not theirs.
        """
        found = self._process_group or group or dist.group.WORLD
        if found is None:
            raise ValueError(
                "process_group: should be initialised: call torch.distributed.init_process_group."
            )
        for path, parameter in parameters:
            if parameter.dtype not in FLOATS:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
                raise ValueError(f"parameters.{path}: should be one of {known}. Found {parameter.dtype}.")
        n, f = found.size(), self._aggregator.tolerance or 0
        if weight is None:
            self._require(n)
        told = {
            "aggregator": _text(self._aggregator),
            "f": str(f),
            "seed": str(self._seed),
            "on_error": self._on_error,
            "momentum": str(self._momentum),
            "per_bucket": str(self._per_bucket),
            "audit": str(self._blocks),
            "weights": str(self._weights) if weight is None else "one of each",
            "leave_out_opposed": str(self._leave_out_opposed),
            "parameters": " ".join(f"{path}:{tuple(p.shape)}:{p.dtype}" for path, p in parameters),
        }
        peers = introduce(told, found, device, name, math.nan if weight is None else weight)
        if weight is not None:
            self._weights = arguments.numbers("weights", [peer.weight for peer in peers])
            heaviest = max(peers, key=lambda peer: peer.weight)
            self._require(n, f" The heaviest is {heaviest.name or heaviest.host}, of {heaviest.weight:g}.")
        suspicion, opposition = Suspicion(n, self._suspect_after), Opposition(n, self._momentum)
        if self._group is None:
            suspicion.restore(*self._seen)
            opposition.restore(self._opposed)
        else:  # what was seen of a rank goes with it to its new place
            before = {peer.name or str(place): place for place, peer in enumerate(self._group.peers)}
            places = [before.get(peer.name or str(place)) for place, peer in enumerate(peers)]
            suspicion = self._group.suspicion.moved(places)
            opposition = self._group.opposition.moved(places)
            self._before = None
        names = {id(parameter): path for path, parameter in parameters} if named else {}
        rank = found.rank()
        whole = whole or found
        joined = _Group(found, whole, n, rank, peers, self._aggregator, names, named, suspicion, opposition)
        tensors = {"reference": self._restored, "momentum": self._restored_momenta}
        self._check_restored(joined, self._restored_of, tensors)
        self._group, self._restored_of = joined, None
        if self._log is not None and whole.rank() == 0:
            about = {
                "n": n,
                "f": f,
                "aggregator": told["aggregator"],
                "hosts": [peer.host for peer in peers],
                "devices": [peer.device for peer in peers],
            }
            self._group.records.append(appender(self._log, about))
        if self._on_step is not None:
            self._group.records.append(self._on_step)

    def _require(self, n: int, found: str = "") -> None:
        """See that the aggregator has a guarantee for n ranks of these weights."""
        f = self._aggregator.tolerance or 0
        try:
            reason = self._aggregator.requires(n, f, self._weights)
        except RowsError as error:
            raise ValueError(f"weights: should be one for each of {n} ranks. {error}") from None
        if reason:
            raise ValueError(
                f"aggregator: has no guarantee for {n} ranks of which {f} may be faulty. "
                f"{reason}.{found} Take more ranks, a smaller f or another rule."
            )

    def take(self, bucket: Bucket) -> torch.futures.Future[Tensor]:
        """The next bucket of the step; its update is there when the last one was taken."""
        if bucket.index() == 0:
            self._pieces, self._settled = [], []  # those of a backward pass that failed on its way
        buffer, parameters = bucket.buffer(), bucket.parameters()
        if self._group is None:
            self.attach([(str(i), p) for i, p in enumerate(parameters)], buffer.device, named=False)
        group = cast("_Group", self._group)
        if buffer.layout is not torch.strided or buffer.dtype not in FLOATS:
            raise ValueError(
                f"gradients: should be dense floats. Found {buffer.dtype}, {buffer.layout}. An embedding "
                "has dense ones with sparse=False."
            )
        if not group.named:
            for parameter in parameters:  # the same in each first step, before buckets are made anew
                group.names.setdefault(id(parameter), str(len(group.names)))
        flat = buffer.flatten()
        if self._momentum:
            self._add_momentum(group, flat, parameters)
        self._pieces.append(self._sent(group, flat, parameters))
        if self._per_bucket:
            # While this bucket is on its way. Every rank is as far with its buckets as the others.
            for piece in self._pieces[len(self._settled) : -1]:
                self._settled.append(self._settle(group, [piece]))
        else:
            # In the order of buckets, so that sums do not depend on the time; and without waiting.
            for piece in self._pieces:
                if self._blocks or (piece.measured is None and not piece.arriving.is_completed()):
                    break
                self._measure(group, piece)
        future = self._pieces[-1].future
        if bucket.is_last():
            self._finish(group)
        return future

    def _add_momentum(self, group: _Group, flat: Tensor, parameters: list[Tensor]) -> None:
        """Write the momentum of this rank over these gradients; not where they are not finite."""
        if not finite(flat):
            return  # dropped, and forgotten
        working = torch.float64 if flat.dtype is torch.float64 else torch.float32
        parts = flat.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            kept = self._momenta.get(id(parameter))
            if kept is None:
                name = group.names[id(parameter)]
                restored = self._restored_momenta.get(name)
                if restored is None:
                    kept = torch.zeros_like(part, dtype=working)
                else:
                    kept = _fitting("momentum", name, restored, part.numel())
                    kept = kept.to(part.device, working, copy=True)
                    del self._restored_momenta[name]
                self._momenta[id(parameter)] = kept
            kept.mul_(self._momentum).add_(part, alpha=1 - self._momentum)
            part.copy_(kept)

    def abandon(self) -> None:
        """Give the buckets of an unfinished step back as they are, where an error has ended it."""
        pieces, self._pieces, self._settled = self._pieces, [], []
        for piece in pieces:
            if not piece.future.done():
                piece.future.set_result(piece.own)

    def _sent(self, group: _Group, buffer: Tensor, parameters: list[Tensor]) -> _Piece:
        """The bucket, whose shards are on their way to their owners."""
        n, d = group.n, buffer.numel()
        s = -(-d // n)
        sizes = [max(0, min(s, d - rank * s)) for rank in range(n)]
        mine, key = sizes[group.rank], tuple(map(id, parameters))
        memory = self._memory.get(key)
        if memory is None or memory.shape != (n * s,) or memory.dtype != buffer.dtype:
            memory = self._memory[key] = torch.zeros(n * s, dtype=buffer.dtype, device=buffer.device)
        work = dist.all_to_all_single(
            memory[: n * mine], buffer, [mine] * n, sizes, group=group.group, async_op=True
        )
        assert work is not None
        in_place = buffer.device.type == "cpu" and not self._blocks  # an audit looks at gradients once more
        devices: list[Any] = [] if buffer.device.type == "cpu" else [buffer.device]
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        return _Piece(key, parameters, d, s, mine, buffer, memory, in_place, work, future)

    def _measure(self, group: _Group, piece: _Piece) -> Measured:
        if piece.measured is None:
            piece.arriving.wait()
            piece.measured = Measured.nothing(group.n)
            if piece.mine:
                rows = piece.rows(group.n)
                piece.measured = measure(
                    self._aggregator, rows, self._shard_of_reference(group, piece), directions=True
                )
                piece.checksums = checksums_of(rows)
        return piece.measured

    def _shard_of_reference(self, group: _Group, piece: _Piece) -> Tensor | None:
        """The columns of the last update that this rank owns; None where there is none."""
        if not self._refers:
            return None
        for parameter in piece.parameters if self._restored else ():
            name = group.names[id(parameter)]
            kept = _fitting("reference", name, self._restored.get(name), parameter.numel())
            self._reference[id(parameter)] = kept.to(device=piece.memory.device)
        start = group.rank * piece.s
        return self._columns_of_reference(piece, slice(start, start + piece.mine))

    def _columns_of_reference(self, piece: _Piece, columns: slice) -> Tensor | None:
        """Some columns of the last update; None where there is none."""
        if not self._refers or any(key not in self._reference for key in piece.key):
            return None
        working = torch.float64 if piece.memory.dtype is torch.float64 else torch.float32
        at, parts = 0, [torch.empty(0, dtype=working, device=piece.memory.device)]
        for flat in (self._reference[key] for key in piece.key):
            parts.append(flat[max(0, columns.start - at) : max(0, columns.stop - at)].to(working))
            at += len(flat)
        return torch.cat(parts)

    def _finish(self, group: _Group) -> None:
        """The decision for all buckets, or for each, once all of them are there; and their updates."""
        pieces = self._pieces
        self._memory = {piece.key: piece.memory for piece in pieces}
        left = pieces[len(self._settled) :]
        for together in [[piece] for piece in left] if self._per_bucket else [left]:
            self._settled.append(self._settle(group, together))
        for settled in self._settled:
            self._exchanged(group, settled)
            self._examine(group, settled)
        error = next((each.error for each in self._settled if each.error is not None), None)
        if error is not None:
            for piece in pieces:
                piece.update.fill_(torch.nan)
        elif self._refers:
            self._remember(pieces)
        self._restored = {}
        step = _record(self._step, self._settled, error, self._repeated(group.n))
        if step.error is None:
            agreement, opposed = group.opposition.see(products_of([each.total for each in self._settled]))
            step = replace(step, agreement=agreement, opposed=opposed)
        self._step += 1
        self._last = step
        self._pieces, self._settled = [], []
        for piece in pieces:
            piece.future.set_result(piece.update)
        if backward_pass() >= 0:
            after_gradients(lambda: self._tell(group, step, error, self._on_error == "raise"))
        else:  # DDP's `join` takes part in the steps of others, where this rank has no batches left
            self._tell(group, step, error, raises=False)

    def _settle(self, group: _Group, pieces: list[_Piece]) -> _Settled:
        """Decide about these buckets together, and begin to exchange their update."""
        if self._blocks:
            settled = self._published(group, pieces)
        else:
            mine = sum((self._measure(group, piece) for piece in pieces), Measured.nothing(group.n))
            settled = self._added_up(group, pieces, mine)
        precision = max(
            precision_of(Rows((piece.memory,))) for piece in pieces
        )  # of the narrowest type of a bucket
        try:
            settled.decision = decide(
                self._aggregator,
                self._without_opposed(group, settled.total),
                self.generator(self._step),
                precision=precision,
                weights=self._weights,
            )
        except AggregationError as reason:
            settled.error = reason
        else:
            self._update(group, settled, settled.decision)
        return settled

    def _without_opposed(self, group: _Group, total: Measured) -> Measured:
        """What was measured, with ranks that are opposed to the others as if they were not finite."""
        if not self._leave_out_opposed:
            return total
        invalid = total.invalid.clone()
        for rank in group.opposition.certain():
            if int(invalid.count_nonzero()) < (self._aggregator.tolerance or 0):
                invalid[rank] = 1
        return replace(total, invalid=invalid)

    def _published(self, group: _Group, pieces: list[_Piece]) -> _Settled:
        """As `_added_up`, from what each rank says of each block of its columns."""
        for piece in pieces:
            piece.arriving.wait()

        def measured(piece: _Piece, rows: Rows, columns: slice) -> Measured:
            reference = self._shard_of_reference(group, piece)
            columns_of = None if reference is None else reference[columns]
            return measure(self._aggregator, rows, columns_of, directions=True)

        found = publish(pieces, self._blocks, group.group, measured)
        return _Settled(pieces, found.total, found.checksums, published=found)

    def _examine(self, group: _Group, settled: _Settled) -> None:
        """Compute some columns of each rank again."""
        if settled.published is None or settled.decision is None:
            return
        settled.accused = examine(
            settled.pieces,
            settled.published,
            settled.decision,
            group.group,
            lambda rows, reference: measure(self._aggregator, rows, reference, directions=True),
            self._columns_of_reference,
        )
        if settled.accused and settled.error is None:
            said = "; ".join(f"rank {rank} {what}" for rank, what in sorted(settled.accused.items()))
            settled.error = AggregationError(f"The audit found: {said}.")

    def _added_up(self, group: _Group, pieces: list[_Piece], mine: Measured) -> _Settled:
        """The sum of what all ranks measured: the same bits on each."""
        n = group.n
        checksums = torch.zeros(n, dtype=torch.int64)
        for piece in pieces:
            if piece.checksums is not None:
                checksums += piece.checksums.cpu()
        checksums = (checksums % CHECKSUM).double()  # exact, and so are their sums
        numbers = torch.cat([mine.products.flatten(), mine.invalid, checksums])
        numbers = numbers.to(pieces[0].memory.device)
        dist.all_reduce(numbers, group=group.whole)
        numbers = numbers.cpu()
        total = Measured(numbers[: -2 * n].view(n + 2, n + 2), numbers[-2 * n : -n])
        return _Settled(pieces, total, numbers[-n:] % CHECKSUM)

    def _repeated(self, n: int) -> tuple[int, ...]:
        """Ranks with the same gradient as in the step before, where most have another."""
        before, self._before = self._before, torch.stack([each.checksums for each in self._settled])
        if before is None or before.shape != self._before.shape:
            return ()
        same = (self._before == before).all(0).nonzero().flatten().tolist()
        return tuple(same) if 2 * len(same) < n else ()

    def _update(self, group: _Group, settled: _Settled, decision: Decision) -> None:
        """Apply the decision to the shards here, and begin to exchange them."""
        squares = None if decision.distances is not None else torch.zeros(group.n, dtype=torch.float64)
        for place, piece in enumerate(settled.pieces):
            start = group.rank * piece.s
            shard = piece.own[start : start + piece.mine]
            if not piece.in_place:
                shard = torch.zeros(piece.s, dtype=piece.memory.dtype, device=piece.memory.device)
            if piece.mine:
                try:
                    self._apply(group, piece, decision, shard[: piece.mine])
                    if squares is not None:
                        squares += squared_distances(piece.rows(group.n), shard[: piece.mine])
                except AggregationError as reason:
                    settled.error = settled.error or reason
                    shard.fill_(torch.nan)  # which the other ranks see
            if piece.in_place:
                settled.exchanged += self._sent_round(group, piece, TAG + place)
            else:
                settled.exchanged.append(_all_gather(piece.memory, shard, group=group.group, async_op=True))
        if squares is not None:
            settled.squares = squares.to(settled.pieces[0].memory.device)
            settled.exchanged.append(dist.all_reduce(settled.squares, group=group.whole, async_op=True))

    def _apply(self, group: _Group, piece: _Piece, decision: Decision, shard: Tensor) -> None:
        """Write the update in the columns of this rank."""
        rows, reference = piece.rows(group.n), self._shard_of_reference(group, piece)
        if not piece.in_place:
            shard.copy_(decision.apply(rows, reference))
            return
        for columns in blocks(shard):
            near = None if reference is None else reference[columns]
            shard[columns] = decision.apply(rows.columns(columns.start, columns.stop), near)

    def _sent_round(self, group: _Group, piece: _Piece, tag: int) -> list[dist.Work | None]:
        """Send the columns of the update here to all others, and receive theirs in their place.

        `all_gather_into_tensor` of gloo takes memory for one more vector, and shards of one length.
        """
        parts = [piece.own[place * piece.s : (place + 1) * piece.s] for place in range(group.n)]
        others = [(group.rank + step) % group.n for step in range(1, group.n)]
        # Methods of the group, which name ranks of it: `dist.isend` does so from torch 2.6 on.
        began: list[dist.Work | None] = [
            group.group.recv([parts[other]], other, tag) for other in others if len(parts[other])
        ]
        if piece.mine:
            began += [group.group.send([parts[group.rank]], other, tag) for other in others]
        return began

    def _exchanged(self, group: _Group, settled: _Settled) -> None:
        """Wait for the update of all ranks, and look at it where a rule might not have made it finite."""
        for work in settled.exchanged:
            assert work is not None
            work.wait()
        if settled.squares is not None:
            settled.squares = settled.squares.cpu()
        if settled.decision is None or settled.decision.certain:
            return
        sound = settled.error is None and all(finite(piece.update) for piece in settled.pieces)
        if group.whole is not group.group:  # whose ranks see other columns
            bad = torch.tensor(
                [float(not sound)], dtype=torch.float32, device=settled.pieces[0].memory.device
            )
            dist.all_reduce(bad, group=group.whole)
            sound = not bool(bad)
        if not sound and settled.error is None:
            settled.error = AggregationError("The update has numbers that are not finite.")

    def _remember(self, pieces: list[_Piece]) -> None:
        """Keep the update: the next steps measure from it."""
        for piece in pieces:
            at = 0
            for parameter in piece.parameters:
                stop = at + parameter.numel()
                kept = self._reference.get(id(parameter))
                if kept is None:
                    self._reference[id(parameter)] = piece.update[at:stop].clone()
                else:
                    kept.copy_(piece.update[at:stop])
                at = stop

    def _tell(self, group: _Group, step: Step, error: Exception | None, raises: bool) -> None:
        """Say what became of a step; gradients are written by now."""
        for tell in group.records:
            self._callbacks.call("on_step", tell, step)
        for rank, steps, reason in group.suspicion.see(step):
            peer = group.peers[rank]
            suspect = SuspectRank(rank, steps, peer.host, peer.device, reason)
            if self._on_suspect is not None:
                self._callbacks.call("on_suspect", self._on_suspect, suspect)
            elif group.rank in (0, rank):
                warnings.warn(str(suspect), RuntimeWarning, stacklevel=2)
        if error is not None and raises:
            raise AggregationError(f"Step {step.step}: {step.error}") from error


def _checked(aggregator: str | Mapping[str, object] | Aggregator, f: int) -> Aggregator:
    built = aggregator_of(aggregator, f, "all ranks trust")
    if reason := refuses(built):
        raise ValueError(f"aggregator: should work on single columns or on distances alone. {reason}.")
    return built


def _fitting(which: str, name: str, kept: Tensor | None, numel: int) -> Tensor:
    """A tensor of a state, flat, for a parameter of so many numbers."""
    if kept is None or kept.numel() != numel:
        raise ValueError(
            f"state.{which}.{name}: should have {numel} numbers, as the parameter. Found "
            f"{'none' if kept is None else kept.numel()}."
        )
    return kept.flatten()


def _text(aggregator: Aggregator) -> str:
    """The aggregator as a text that is the same on all ranks."""
    try:
        return repr(spec_of(aggregator))
    except KeyError:  # a class that is registered nowhere
        return ", ".join(type(part).__qualname__ for part in (*aggregator.mix, aggregator.rule))


def products_of(measured: Sequence[Measured]) -> NDArray[np.float64]:
    """Inner products of whole gradients, (n, n), NaN in the rows of those that are not finite."""
    products = torch.stack([each.products for each in measured]).sum(0)
    invalid = torch.stack([each.invalid for each in measured]).sum(0) > 0
    centre = products[:-2, -1]  # of x_i - c with -c
    found = products[:-2, :-2] - centre[:, None] - centre + products[-1, -1]
    found[invalid], found[:, invalid] = torch.nan, torch.nan
    return found.numpy()


def _record(
    number: int, settled: Sequence[_Settled], error: Exception | None, repeated: tuple[int, ...]
) -> Step:
    """The record of a step; of several decisions weights are means over columns, and squares are added."""
    invalid = torch.stack([each.total.invalid for each in settled]).sum(0)
    dropped = tuple(invalid.nonzero().flatten().tolist())
    decided = [(each, each.decision) for each in settled if each.decision is not None]
    if len(decided) < len(settled) or error is not None:
        ranks = f" Not finite: {', '.join(map(str, dropped))}." if dropped else ""
        accused = tuple(sorted({rank for each in settled for rank in each.accused}))
        return Step(number, dropped, None, error=f"{error}{ranks}", repeated=repeated, accused=accused)
    columns = [sum(piece.d for piece in each.pieces) for each, _ in decided]
    shares = [count / sum(columns) for count in columns]
    weights = [decision.weights for _, decision in decided]
    distances, spreads = torch.zeros(len(invalid), dtype=torch.float64), 0.0
    known = True
    for each, decision in decided:
        squares = each.squares if decision.distances is None else decision.distances.square()
        if squares is None:
            known = False
            break
        distances += squares
        spread = float(squares[[*decision.kept]].mean()) if decision.spread is None else decision.spread
        spreads += spread
    distances[[*dropped]] = torch.nan
    means = [w * share for w, share in zip(weights, shares, strict=True) if w is not None]
    return Step(
        number,
        dropped,
        tuple(torch.stack(means).sum(0).tolist()) if len(means) == len(weights) else None,
        sum(d.reference_weight * share for (_, d), share in zip(decided, shares, strict=True)),
        spreads if known else None,
        tuple(distances.sqrt().tolist()) if known else None,
        repeated,
    )


def backward_pass() -> int:
    """The number of the backward pass that this thread is in; -1 outside of any."""
    return int(torch._C._current_graph_task_id())  # pyright: ignore[reportPrivateUsage]


def after_gradients(act: Callable[[], None]) -> None:
    """Call this when the backward pass has written all gradients, so that an error leaves DDP whole.

    The hook runs before DDP has asked for its own last call; one asked for in ours comes after it.
    """
    engine: Any = Variable._execution_engine  # pyright: ignore[reportPrivateUsage]
    engine.queue_callback(lambda: engine.queue_callback(act))
