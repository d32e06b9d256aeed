"""Refusals: every code that one end tells the other, in one table.

The server refuses by a member of `Refusal`, and the worker looks up in it what to do. The page of the
documentation is printed from it: `python -m varangian.protos.refusals docs/reference/refusals.md`. Plain
data: it imports neither gRPC nor anything of either end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from textwrap import fill
from typing import Literal, TypeAlias

StatusName: TypeAlias = Literal[
    "ABORTED",
    "ALREADY_EXISTS",
    "DATA_LOSS",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
    "INVALID_ARGUMENT",
    "OUT_OF_RANGE",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
]
"""The gRPC status that a refused call ends with."""


class Topic(Enum):
    """The part of the page that a refusal stands in; its heading."""

    CALLER = "Identity of the caller"
    CONTENT = "Contents of a message"
    TIME = "Time of a message"
    COST = "Rates and limits"
    CONNECTION = "Connections that are closed"


class Blame(Enum):
    """The party at fault for a refusal."""

    FAULT = "the worker, which this proves faulty"
    CALLER = "the caller: its program, settings or credentials"
    TIMING = "nobody: it came too late, too early or twice"
    NETWORK = "the connection"
    SERVER = "the server, or another worker"


class Reaction(Enum):
    """The reaction of `varangian worker` to a refusal."""

    RETRY = "makes the same call again, after a pause"
    REJOIN = "joins again, and then makes the same call again"
    RENEW = "tries again with another certificate if there is one on its disk, and ends otherwise"
    NEXT_MODEL = "drops this vector and goes on with the next model"
    STOP = "ends with this sentence"
    RECONNECT = "connects again"
    NONE = "is not told"


@dataclass(frozen=True)
class Entry:
    """The entry of a refusal: status, sentence, cause and advice."""

    topic: Topic
    status: StatusName | None
    """None for a connection that is closed without a word."""
    blame: Blame
    reaction: Reaction
    sentence: str
    """The rule, sent back in front of what was found. Names in braces are filled in where it is raised."""
    comes_from: str
    advice: str
    """Advice to an operator."""
    remark: str = ""
    """A remark on why it spends one of the f, or does not."""


class Refusal(Enum):
    """The refusals of calls, vectors and connections. The name is the stable code."""

    UNIDENTIFIED = Entry(
        Topic.CALLER,
        "UNAUTHENTICATED",
        Blame.CALLER,
        Reaction.STOP,
        "A call should carry varangian-worker, varangian-token and varangian-session, each once.",
        comes_from="a program that is no `varangian worker`, or a header that appears twice.",
        advice="start the worker through `varangian worker`.",
    )
    UNCERTIFIED = Entry(
        Topic.CALLER,
        "UNAUTHENTICATED",
        Blame.CALLER,
        Reaction.STOP,
        "A call should come over TLS 1.3 with a certificate that says who is calling.",
        comes_from="a certificate that does not say who its holder is, or a connection with a version of "
        "TLS below 1.3.",
        advice="use a bundle that `varangian certs issue` made.",
    )
    BAD_TOKEN = Entry(
        Topic.CALLER,
        "UNAUTHENTICATED",
        Blame.CALLER,
        Reaction.STOP,
        "The token should be the one that the secret of the server makes for this name.",
        comes_from="a worker whose token was made with another secret than the server's, or somebody who "
        "pretends to be that worker.",
        advice="make the token again at the server, `varangian token NAME`, or use certificates.",
    )
    UNKNOWN_WORKER = Entry(
        Topic.CALLER,
        "PERMISSION_DENIED",
        Blame.CALLER,
        Reaction.STOP,
        "The name of a worker should be one that this run was started with, or has admitted.",
        comes_from="a name beyond those of the run: another `workers=` than the server's, or a "
        "certificate for another run.",
        advice="give server and workers the same `workers=`, or `varangian workers admit NAME`.",
    )
    EXPELLED = Entry(
        Topic.CALLER,
        "PERMISSION_DENIED",
        Blame.CALLER,
        Reaction.STOP,
        "A worker should be a member of the run; this one is none any more.",
        comes_from="a worker that the operator has expelled with `varangian workers expel`, or that was "
        "started again after it had left the run. Open calls of one that is expelled are ended, too, and "
        "what it sent and is not used yet leaves the run.",
        advice="if the worker should be back, `varangian workers admit NAME`, and start it again.",
        remark="who is no member spends nothing",
    )
    MEMBERSHIP = Entry(
        Topic.CALLER,
        "FAILED_PRECONDITION",
        Blame.CALLER,
        Reaction.STOP,
        "A change of the workers of a run should leave all of its promises standing.",
        comes_from="`varangian workers`: too few workers would be left for the rule or the quorum, the "
        "name is none of the run or one already, there is no memory for one more, or the samples were "
        "dealt among the workers of the start. The sentence says which.",
        advice="what the sentence says; `--f F` together with the change if fewer may be Byzantine then.",
        remark="nothing has changed",
    )
    MISNAMED = Entry(
        Topic.CALLER,
        "PERMISSION_DENIED",
        Blame.CALLER,
        Reaction.STOP,
        "A worker should call itself by the name on its certificate.",
        comes_from="a call that names another worker than the certificate does. `varangian worker` never "
        "makes one.",
        advice="look for `security:` in the log of the server; revoke the certificate if nobody can "
        "explain it.",
        remark="the call counts for nobody",
    )
    ROLE = Entry(
        Topic.CALLER,
        "PERMISSION_DENIED",
        Blame.CALLER,
        Reaction.STOP,
        "A call should be one that the role on the certificate allows.",
        comes_from="the certificate of a server or an operator where that of a worker is needed, or any "
        "but that of an operator for `varangian workers`.",
        advice="give `--certs` the bundle of the role that the sentence names.",
    )
    OTHER_CLUSTER = Entry(
        Topic.CALLER,
        "PERMISSION_DENIED",
        Blame.CALLER,
        Reaction.STOP,
        "A certificate should be one of the cluster that the server is in.",
        comes_from="a certificate of another authority's cluster, where `ca.pem` at the server has "
        "several authorities.",
        advice="give `--certs` a bundle of the cluster that the sentence names as the server's.",
    )
    REVOKED = Entry(
        Topic.CALLER,
        "PERMISSION_DENIED",
        Blame.CALLER,
        Reaction.RENEW,
        "A certificate should be one that was not revoked.",
        comes_from="a certificate that `varangian certs revoke` has declared void, within a second of it. "
        "Calls that are open are ended, too, and what came with the certificate and is not used yet "
        "leaves the run.",
        advice="if the worker should be back, `varangian certs issue DIR NAME --force`, and bring it the "
        "new bundle.",
        remark="the worker takes no part, and the record names it under `revoked`",
    )
    EXPIRED = Entry(
        Topic.CALLER,
        "UNAUTHENTICATED",
        Blame.CALLER,
        Reaction.RENEW,
        "A certificate should be one that has not expired.",
        comes_from="a certificate that came to its end while its connection stood. Afterwards no "
        "connection is made with it.",
        advice="renew it with `varangian certs issue DIR NAME --force`, and bring the worker the new "
        "bundle.",
    )
    ENROLMENT = Entry(
        Topic.CALLER,
        "PERMISSION_DENIED",
        Blame.CALLER,
        Reaction.STOP,
        "A certificate should be asked for with a token that an operator has given out, once and in time.",
        comes_from="`varangian join` with a token that this server has not given out, or not for this "
        "name, that is older than a day or was used with another key; or an operator who invites or admits "
        "a name for which that cannot be done. The sentence says which.",
        advice="`varangian workers invite NAME` gives out another token. Where a token was used with a key "
        "that nobody here has made, somebody else has seen it: do not admit that key.",
    )
    NOT_JOINED = Entry(
        Topic.CALLER,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.REJOIN,
        "A worker should join before it pulls or pushes.",
        comes_from="a worker that pulls or pushes before it joins, or that a restarted server does not "
        "know yet.",
        advice="nothing.",
    )
    SESSION_TAKEN = Entry(
        Topic.CALLER,
        "ALREADY_EXISTS",
        Blame.CALLER,
        Reaction.RETRY,
        "One process at a time should speak for a worker.",
        comes_from="a second process with the name of a worker whose process lives. The name is free 2 s "
        "after all connections of that process were closed, as they are when it ends, and otherwise after "
        "10 s of silence.",
        advice="stop one of the two; after a crash the new one gets in by itself. With `--claim` the next "
        "free name is taken at once.",
    )
    SESSION_LOST = Entry(
        Topic.CALLER,
        "ALREADY_EXISTS",
        Blame.TIMING,
        Reaction.STOP,
        "A process should stop when another one has taken its worker's name over.",
        comes_from="a worker that was cut off or silent for so long that another process has taken its "
        "name over.",
        advice="nothing, if that was meant.",
    )

    PROTOCOL = Entry(
        Topic.CONTENT,
        "FAILED_PRECONDITION",
        Blame.CALLER,
        Reaction.STOP,
        "Both ends should speak the same protocol version.",
        comes_from="another version of Varangian at the other end.",
        advice="install the same release on both ends; the sentence says which version each speaks.",
    )
    RUN = Entry(
        Topic.CONTENT,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.REJOIN,
        "A message should belong to the run that the server holds.",
        comes_from="a message of an older run at the same address, or its replay.",
        advice="nothing.",
    )
    COMMON = Entry(
        Topic.CONTENT,
        "FAILED_PRECONDITION",
        Blame.CALLER,
        Reaction.STOP,
        "The machines of a run should have the same settings and data.",
        comes_from="a worker whose settings or data are not those of the server: another loss, model, "
        "number of classes, partition, momentum or number of local steps; with a partition that deals "
        "samples out, other samples or another seed. The sentence names what differs.",
        advice="give all machines one configuration. For data that each site has of its own choose "
        "`partition=private`; state the number of classes as `data.custom.classes`.",
    )
    LAYOUT = Entry(
        Topic.CONTENT,
        "FAILED_PRECONDITION",
        Blame.CALLER,
        Reaction.STOP,
        "The model of a worker should have the parameters of the server's model.",
        comes_from="a worker with another model; the sentence names the first parameter that differs.",
        advice="give server and workers the same `model=` and `data=`.",
        remark="neither when it joins nor at a push",
    )
    MALFORMED = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A message should be of the type that this call takes.",
        comes_from="bytes that are no message of this call, or a larger one than the call takes.",
        advice="`varangian worker` never sends one; look at who does.",
    )
    SEQUENCE = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A worker should send one vector in a round, with sequence 0.",
        comes_from="a push that says it is not the first vector of its round.",
        advice="as for MALFORMED.",
    )
    DTYPE = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "The numbers of a vector should have the type that both ends agreed on.",
        comes_from="numbers written in another way than `wire.dtype` of the server says.",
        advice="start the worker again; it hears the type when it joins.",
    )
    NUMEL = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A vector should have as many numbers as the model.",
        comes_from="a vector of another length than the model.",
        advice="as for MALFORMED.",
    )
    ORDER = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A chunk should start where the one before it ended.",
        comes_from="a chunk that leaves a gap, overlaps, or comes twice.",
        advice="as for MALFORMED.",
    )
    CHUNK_SIZE = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A chunk should not be empty.",
        comes_from="an empty chunk.",
        advice="as for MALFORMED.",
    )
    TOO_MANY_BYTES = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A vector should not have more bytes than its manifest says.",
        comes_from="more payload than the manifest says; it is cut off there.",
        advice="as for MALFORMED.",
    )
    TOO_FEW_BYTES = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A stream should carry every byte that its manifest promises.",
        comes_from="an upload that says it is complete and is not.",
        advice="as for MALFORMED.",
    )
    DIGEST_SIZE = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A manifest or a seal should carry a digest of 16 bytes.",
        comes_from="a manifest whose digest has not 16 bytes.",
        advice="as for MALFORMED.",
    )
    DIGEST = Entry(
        Topic.CONTENT,
        "DATA_LOSS",
        Blame.NETWORK,
        Reaction.RETRY,
        "The bytes of a vector should have the digest that its manifest says.",
        comes_from="a payload that was changed on its way, or a digest that was never right.",
        advice="nothing, if it is rare.",
        remark="the line may be to blame",
    )
    UNSOUND = Entry(
        Topic.CONTENT,
        "INVALID_ARGUMENT",
        Blame.FAULT,
        Reaction.NEXT_MODEL,
        "A vector should have only finite numbers.",
        comes_from="a vector with a number that is not finite, or with a scale of int8 numbers that no "
        "worker writes, under a digest that is right: an attack. "
        "`varangian worker` declines the round instead when its gradient is not finite, as in a model "
        "that has diverged.",
        advice="look at who sends it; other programs that speak the protocol should look at their vectors "
        "first.",
    )

    STALE = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.NEXT_MODEL,
        "This round is over; pull the current one.",
        comes_from="a worker that is slower than `server.deadline`, or a replay.",
        advice="raise `server.deadline` if it happens often.",
        remark="the worker was missing",
    )
    RESTARTED = Entry(
        Topic.TIME,
        "ABORTED",
        Blame.SERVER,
        Reaction.RETRY,
        "The round began anew because a vector that was counted on has failed; push again.",
        comes_from="a round with `server.memory: window`, in which columns are forgotten as they come: "
        "another worker died, proved faulty or fell behind after the first of them were, and the round "
        "began anew without it.",
        advice="nothing, if it is rare: each worker can cause it once in a round.",
    )
    FUTURE = Entry(
        Topic.TIME,
        "OUT_OF_RANGE",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "This round has not opened yet; pull the current one.",
        comes_from="a push for a round that has not opened. `varangian worker` never makes one.",
        advice="look at who sends it.",
    )
    DUPLICATE = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.NONE,
        "This very push was counted already; there is nothing to do.",
        comes_from="a push that was counted already, usually because its answer was lost. The call "
        "succeeds and says `duplicate`.",
        advice="nothing.",
    )
    REPEATED = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.NEXT_MODEL,
        "A vector of this worker counts already; push it again with its digest in the manifest.",
        comes_from="a worker whose vector counts already, and which begins a push without saying what is "
        "in it: most often a process that was started again and has computed the round once more.",
        advice="nothing. The worker pushes once more and gives the digest first; then the server knows "
        "whether it is the same vector.",
    )
    COUNTED = Entry(
        Topic.TIME,
        "ALREADY_EXISTS",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "Another vector of this worker counts for this round: the first complete one does.",
        comes_from="a worker that pushes a second, different vector for the same round: most often a "
        "process that was started again and has lost its momentum; or two processes that share a name, or "
        "an attack.",
        advice="nothing, if it is rare; otherwise make sure that the name runs once.",
        remark="the first complete vector counts, as if the second had never come",
    )
    FAULTY = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "This worker was proven faulty in this round; pull the next one.",
        comes_from="a worker that was proven faulty earlier in this round.",
        advice="look for what came before it in the log.",
        remark="one was spent for what came before",
    )
    BUSY = Entry(
        Topic.TIME,
        "UNAVAILABLE",
        Blame.TIMING,
        Reaction.RETRY,
        "An upload of this worker is still open; finish it or give it up first.",
        comes_from="a worker whose earlier vector has arrived and is still being counted.",
        advice="nothing.",
    )
    AGE = Entry(
        Topic.TIME,
        "UNAVAILABLE",
        Blame.SERVER,
        Reaction.RETRY,
        "A call that stays open should be made anew now and then, on a new connection. Make it again.",
        comes_from="the call by which a worker says that it is there, once it has been open for an hour, "
        "so that its connection can be replaced by a new one, for which certificates are verified again. "
        "It is not logged.",
        advice="nothing.",
    )
    STOPPING = Entry(
        Topic.TIME,
        "UNAVAILABLE",
        Blame.SERVER,
        Reaction.RETRY,
        "A worker should wait for the next server at this address. This one stops before its run is over.",
        comes_from="`varangian server` that was stopped by a signal before its last round, as by `docker "
        "compose restart`: its answer to whatever a worker pulls or pushes then.",
        advice="start the server again, or stop the workers. They try until another server answers at "
        "this address, and join its run; `worker.patience` limits for how long.",
    )
    REPLACED = Entry(
        Topic.TIME,
        "UNAVAILABLE",
        Blame.TIMING,
        Reaction.RETRY,
        "A worker should send one vector at a time. Another push of it has begun after this one.",
        comes_from="a worker that began another push before this one had ended. The newer one takes its "
        "place; the older one is often that of a connection that broke without the server's being told.",
        advice="nothing.",
    )
    UNOFFERED = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.NEXT_MODEL,
        "No upload of this worker for this round and digest is open; offer it first.",
        comes_from="an upload whose place is gone, because its round or the run has ended meanwhile.",
        advice="nothing.",
    )
    NOT_CLOSED = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.SERVER,
        Reaction.NONE,
        "This round is still open, so nothing of it can be committed or skipped.",
        comes_from="the server itself: a result for a round that is still open. No worker can cause it.",
        advice="report it.",
    )
    NOT_INVITED = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.NEXT_MODEL,
        "This worker was not invited to push for this round; pull, and wait to be.",
        comes_from="a run in which not everybody pushes in every round, and a worker that pushes without "
        "having been given the model of that round: a replay, or a worker whose pull was taken for dead "
        "before its answer was read.",
        advice="nothing, if it is rare.",
    )
    TOO_OLD = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.NEXT_MODEL,
        "The model that this vector was made for is too old by now; pull the current one.",
        comes_from="a run in which not everybody pushes in every round, and a worker that is slower than "
        "`server.deadline`, or by more than `tau` rounds where older vectors count.",
        advice="raise `server.deadline` or `tau` if it happens often.",
        remark="the worker was missing",
    )
    FINISHED = Entry(
        Topic.TIME,
        "FAILED_PRECONDITION",
        Blame.TIMING,
        Reaction.NEXT_MODEL,
        "The run is finished.",
        comes_from="a push after the last round.",
        advice="nothing: in place of a next model the worker hears why the run ended, and ends too.",
    )

    IDLE = Entry(
        Topic.COST,
        "DEADLINE_EXCEEDED",
        Blame.NETWORK,
        Reaction.RETRY,
        "A stream should bring or take a message at least every {seconds:g} s. Nothing came.",
        comes_from="a stream that brought or took nothing for so many seconds as the sentence says. A "
        "slow line is not idle as long as bytes flow.",
        advice="look at the line, or at a worker that hangs.",
    )
    LANE = Entry(
        Topic.COST,
        "UNAVAILABLE",
        Blame.NETWORK,
        Reaction.RETRY,
        "A data connection should last until the payload is through.",
        comes_from="a payload that travels on a data connection beside gRPC, and the connection ended "
        "before the payload was complete: a line that broke, a firewall that drops what it does not know, "
        "a worker that hung up, or somebody on the way who has changed what was encrypted.",
        advice="nothing, if it is rare. After two in a row the worker sends its payloads over gRPC for a "
        "minute; `server.data_port: null` does so for the whole run.",
    )
    STREAMS = Entry(
        Topic.COST,
        "RESOURCE_EXHAUSTED",
        Blame.CALLER,
        Reaction.RETRY,
        "A worker should have at most {most} streams open. This would be one more.",
        comes_from="a worker with more calls open than it needs.",
        advice="nothing: streams that died are noticed and make room.",
    )
    UPLOADS = Entry(
        Topic.COST,
        "RESOURCE_EXHAUSTED",
        Blame.CALLER,
        Reaction.NEXT_MODEL,
        "A worker should need at most {most} uploads in a round. This would be one more.",
        comes_from="a worker that has begun sixteen uploads in one round: a line that breaks again and "
        "again, or somebody who wants to keep the server busy.",
        advice="look at the line between worker and server.",
        remark="the worker is missing from this round",
    )
    PULLS = Entry(
        Topic.COST,
        "RESOURCE_EXHAUSTED",
        Blame.CALLER,
        Reaction.RETRY,
        "A worker should need the same parameters once. It had them often; wait {seconds:g} s.",
        comes_from="a worker that has asked for the same parameters eight times at once. After that they "
        "come once in five seconds.",
        advice="look at the line between worker and server.",
    )
    JOINS = Entry(
        Topic.COST,
        "RESOURCE_EXHAUSTED",
        Blame.CALLER,
        Reaction.RETRY,
        "A worker should join once, or now and then. It did more than {rate:g} times a second.",
        comes_from="a worker that joins more often than twice a second for a while: a process that ends "
        "and starts again, or many processes with one name.",
        advice="look at the log of the worker.",
    )
    GUESSES = Entry(
        Topic.COST,
        "RESOURCE_EXHAUSTED",
        Blame.CALLER,
        Reaction.RETRY,
        "An address should not show more than {rate:g} wrong enrolment tokens a minute. It did.",
        comes_from="an address from which wrong tokens came to `server.enrol_port`; for a minute no token "
        "from there is looked at.",
        advice="look at who is at that address, which the log of the server names under `security:`.",
    )
    CALLS = Entry(
        Topic.COST,
        "RESOURCE_EXHAUSTED",
        Blame.CALLER,
        Reaction.RETRY,
        "A caller should make at most {rate:g} calls a second beside those of its rounds. It made more.",
        comes_from="a caller that makes more than 25 calls a second, a hundred at once, beside the pull "
        "and the push of each round: a program in a loop, or an attack. Callers are told apart by their "
        "certificate or token; without TLS those who ask for the status by their address. Such calls are "
        "first answered up to a second later, then refused after that second, and whoever goes on "
        "regardless loses the connection.",
        advice="`varangian worker` and `varangian health` never make so many by themselves; look at who "
        "does.",
    )

    CONNECTIONS = Entry(
        Topic.CONNECTION,
        None,
        Blame.CALLER,
        Reaction.RECONNECT,
        "A caller should need fewer connections.",
        comes_from="the port for calls. Connections beyond 4 n + 32, n workers, are closed as they come, "
        "before any handshake. Of the others the surplus is closed: of each certificate or token all but "
        "the 4 with the newest calls, of each address without either all but 8, and, where three quarters "
        "of all places are taken, of those who have called nothing yet so many that a quarter of the "
        "places is left to them, the oldest of the fullest address first. The server logs the first of "
        "each caller.",
        advice="look at who connects so often.",
    )
    TICKET = Entry(
        Topic.CONNECTION,
        None,
        Blame.CALLER,
        Reaction.RECONNECT,
        "A ticket should be valid, and new.",
        comes_from="the data port: a program that is no worker, or shows a ticket that is unknown, used "
        "or out of date.",
        advice="nothing, if it is rare: a call that ended a moment ago leaves one. Otherwise look who "
        "reaches the port.",
    )
    SILENT = Entry(
        Topic.CONNECTION,
        None,
        Blame.CALLER,
        Reaction.RECONNECT,
        "A connection should show its ticket in time.",
        comes_from="the data port: a connection that has shown no ticket for 5 s. Logged at level debug.",
        advice="as for TICKET.",
    )
    CROWD = Entry(
        Topic.CONNECTION,
        None,
        Blame.CALLER,
        Reaction.RECONNECT,
        "A caller should have few connections that it does not use.",
        comes_from="the data port: the 65th connection without a ticket, where the oldest of the address "
        "that has most of them is closed; or the third that a worker does not use, where its oldest is. "
        "Logged at level debug.",
        advice="as for TICKET.",
    )

    @property
    def code(self) -> str:
        """The stable code in the metadata of a refused call."""
        return self.name

    @property
    def sentence(self) -> str:
        """The rule that was not kept."""
        return self.value.sentence

    @property
    def status(self) -> StatusName | None:
        return self.value.status

    @property
    def blame(self) -> Blame:
        return self.value.blame

    @property
    def reaction(self) -> Reaction:
        return self.value.reaction

    @property
    def spends_f(self) -> bool:
        """Whether it proves the worker Byzantine in this round; the rule then stands one bad row less."""
        return self.blame is Blame.FAULT


REFUSALS = {refusal.code: refusal for refusal in Refusal}
"""By code, as it comes over the wire."""

MARK = "<!-- The rest is printed by: python -m varangian.protos.refusals docs/reference/refusals.md -->"
WIDTH = 120


def as_markdown() -> Iterator[str]:
    """The page's sections, one for each refusal, in blocks between which there is an empty line."""
    topic = None
    for refusal in Refusal:
        entry = refusal.value
        if entry.topic is not topic:
            topic = entry.topic
            yield f"## {topic.value}"
        spends = "yes" if refusal.spends_f else "no"
        said = {
            "Sentence": entry.sentence,
            "Status": entry.status or "none; the connection is closed",
            "Comes from": entry.comes_from,
            "To blame": f"{entry.blame.value}.",
            "Spends one of the f": f"{spends}: {entry.remark}." if entry.remark else f"{spends}.",
            "What to do": entry.advice,
            "What a worker does": f"it {entry.reaction.value}.",
        }
        lines = (
            fill(f"- **{mark}:** {text}", WIDTH, subsequent_indent="  ") for mark, text in said.items()
        )
        yield f"### {refusal.code}\n\n" + "\n".join(lines)


def printed(page: str) -> str:
    """A page with these sections below its introduction."""
    head, _, _ = page.partition(MARK)
    return "\n\n".join([head + MARK, *as_markdown()]) + "\n"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(printed(path.read_text()))
