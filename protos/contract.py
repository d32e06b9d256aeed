"""The contract of a run: what both ends agree on at Join, and every manifest is compared with.

A manifest is compared before a byte of payload is read. After that the size of everything is known, so no
size that came over the wire is ever passed to an allocator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from varangian.protos import ps_pb2
from varangian.protos.errors import Refused
from varangian.protos.layout import DIGEST_BYTES, Layout, LayoutError, fragments_of
from varangian.protos.messages import PROTOCOL, ROUND_LIMIT
from varangian.protos.payloads.encoding import FLOAT32, WIRE, Dtype, Encoding, check_digest
from varangian.protos.refusals import Refusal
from varangian.protos.shared_settings import SharedSettings
from varangian.protos.text import quote


@dataclass(frozen=True)
class Terms:
    """Terms of a run beside its contract: starts and checkpoints of the server, momentum and deadline."""

    epoch: int = 0
    """How often the server of the run was started before."""
    resumed_at: int = 0
    """The round that this start of the server began with."""
    every: int = 0
    """The server can be resumed at rounds that are multiples of this; 0: it keeps no checkpoints."""
    keep: int = 0
    """How many of its newest checkpoints the server keeps."""
    parent: str = ""
    """The run that this one is a branch of, from `resumed_at` on; empty: none."""
    momentum: float | None = None
    """Worker momentum of the settings; None: the server does not say."""
    deadline: float = 0.0
    """Seconds from the start of a round to its deadline at most; 0: not known."""
    fragments: int = 1
    """Into how many fragments the parameters are split; a push has those of its round."""

    @classmethod
    def of(cls, reply: ps_pb2.JoinReply) -> Terms:
        """The terms that a server has sent.

        Raises:
            Refused: no run has such a round, such a momentum or such a deadline.
        """
        check_round(reply.resumed_at)
        momentum = reply.momentum if reply.HasField("momentum") else None
        if momentum is not None and not 0 <= momentum < 1:
            raise Refused(Refusal.MALFORMED, f"Found worker momentum {momentum:g}, from 0 to below 1.")
        if not 0 <= reply.deadline < inf:
            raise Refused(Refusal.MALFORMED, f"Found a deadline of {reply.deadline:g} seconds.")
        return cls(
            reply.epoch,
            reply.resumed_at,
            reply.checkpoint_every,
            reply.checkpoint_keep,
            reply.parent,
            momentum,
            reply.deadline,
            reply.fragments or 1,
        )


@dataclass(frozen=True)
class Contract:
    """The agreement of both ends at Join; every manifest has to say the same."""

    run_id: str
    layout: Layout
    dtype: Dtype = FLOAT32
    """Of the vector that the manifest announces."""
    common: SharedSettings = field(default_factory=SharedSettings)
    """Settings and data, compared at Join alone."""
    classes: int | None = None
    """The number of classes of the samples, for workers whose own data has fewer."""
    terms: Terms = field(default_factory=Terms)
    """What else workers should know of the run."""
    exact: int = 0
    """How many numbers at the end of a vector are float32 whatever `dtype` says: its buffers."""

    fragments: frozenset[int] | None = None
    """The fragments of the parameters that are sent; None sends all parameters."""

    def of_push(self, round: int) -> Contract:
        """The same for a push in a round, where the parameters are split into fragments."""
        count = self.terms.fragments
        return self if count == 1 else replace(self, fragments=frozenset((round % count,)))

    def of_changes(self, since: int, round: int) -> Contract:
        """The same for the parameters of a round, to who has those of an earlier one: what has changed.

        Raises:
            Refused: nothing, or everything has changed between these rounds.
        """
        count = self.terms.fragments
        if not 0 < round - since < count:
            sentence = f"Found the changes from round {since} to {round} in a run with {count} fragments."
            raise Refused(Refusal.MALFORMED, sentence)
        changed = fragments_of(self.layout, count).changed(since, round)
        return replace(self, fragments=frozenset(changed))

    @property
    def slices(self) -> list[slice] | None:
        """Where what is sent lies among all parameters; None where it is all of them."""
        if self.fragments is None:
            return None
        return fragments_of(self.layout, self.terms.fragments).slices_of(self.fragments)

    @property
    def numel(self) -> int:
        """How many numbers are sent."""
        if self.fragments is None:
            return self.layout.numel
        numels = fragments_of(self.layout, self.terms.fragments).numels
        return sum(numels[fragment] for fragment in self.fragments)

    @property
    def encoding(self) -> Encoding:
        """The places of the numbers in a payload."""
        return Encoding(self.numel, self.dtype, self.exact)

    @property
    def size(self) -> int:
        """Bytes of a payload."""
        return self.encoding.size

    def manifest(self, round: int, content_digest: bytes) -> ps_pb2.Manifest:
        return ps_pb2.Manifest(
            protocol=PROTOCOL,
            run_id=self.run_id,
            round=round,
            layout_digest=self.layout.digest,
            dtype=WIRE[self.dtype],
            numel=self.numel,
            content_digest=content_digest,
        )

    def check(self, manifest: ps_pb2.Manifest, digest_follows: bool = False) -> None:
        """Compare a manifest of the other end with the contract.

        Args:
            manifest: what it says.
            digest_follows: whether the digest may be missing, because it comes after the payload.

        Raises:
            Refused: for the first thing that is not as agreed.
        """
        check_protocol(manifest.protocol)
        check_run(self.run_id, manifest.run_id)
        if manifest.layout_digest != self.layout.digest:
            theirs, ours = manifest.layout_digest[: 2 * DIGEST_BYTES].hex(), self.layout.digest.hex()
            raise Refused(Refusal.LAYOUT, f"Found layout {theirs} where this run has {ours}.")
        if manifest.sequence != 0:
            raise Refused(Refusal.SEQUENCE, f"Found {manifest.sequence}.")
        if manifest.dtype != WIRE[self.dtype]:
            raise Refused(Refusal.DTYPE, f"Found type number {manifest.dtype} in place of {self.dtype}.")
        if manifest.numel != self.numel:
            what = "the model has" if self.fragments is None else _described(self.fragments)
            raise Refused(Refusal.NUMEL, f"Found {manifest.numel} numbers where {what} {self.numel}.")
        if manifest.content_digest or not digest_follows:
            check_digest(manifest.content_digest)


def _described(fragments: frozenset[int]) -> str:
    """Some fragments as the subject of a sentence, with its verb."""
    names = ", ".join(map(str, sorted(fragments)))
    return f"fragment {names} has" if len(fragments) == 1 else f"fragments {names} have"


def check_protocol(found: int) -> None:
    if found != PROTOCOL:
        sentence = (
            f"This end speaks version {PROTOCOL}, the other end {found}. Install one release at both."
        )
        raise Refused(Refusal.PROTOCOL, sentence)


def check_round(found: int) -> None:
    """Refuse a round number of a server that no run has; a worker answers with the number next to it."""
    if found > ROUND_LIMIT:
        raise Refused(Refusal.MALFORMED, f"Found round {found}, which no run has.")


def check_dtype(found: int) -> Dtype:
    """The name of the number type that a server asks for."""
    for name, number in WIRE.items():
        if found == number:
            return name
    raise Refused(Refusal.DTYPE, f"The server asks for type number {found}; is it newer than this worker?")


def check_exact(found: int, numel: int) -> int:
    """Refuse more buffers of a server than the vectors of the run have numbers."""
    if found > numel:
        raise Refused(Refusal.MALFORMED, f"Found {found} buffers among the {numel} numbers of a vector.")
    return found


def check_fragments(layout: Layout, found: int) -> None:
    """Refuse more fragments of a server than the model has parameters."""
    try:
        fragments_of(layout, found)
    except LayoutError as error:
        raise Refused(Refusal.MALFORMED, str(error)) from None


def check_run(run_id: str, found: str) -> None:
    if found != run_id:
        raise Refused(
            Refusal.RUN, f"Found run {quote(found, 80)} where the server holds {quote(run_id, 80)}."
        )
