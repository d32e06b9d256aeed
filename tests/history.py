"""History checker: whether what a server did is what one server could have done that never crashed.

An event log is a list of objects as JSON has them, one for each thing that happened, in order. `check` is a
pure function of it, and returns a sentence for everything that is wrong.

    {"event": "open", "round": 7}
    {"event": "accept", "worker": "w00", "round": 7, "digest": "00ff"}     its vector counts from now on
    {"event": "reject", "worker": "w00", "round": 6, "reason": "STALE"}
    {"event": "fault", "worker": "w03", "round": 7, "reason": "not finite"}
    {"event": "withdraw", "worker": "w00"}                 what it sent and was not used yet counts no more
    {"event": "commit", "round": 7, "workers": {"w00": 7}, "digests": {"w00": "00ff"}, "faults": ["w03"],
     "weights": {"w00": 1.0}, "parameters": "ab12"}        workers with the rounds of their models
    {"event": "skip", "round": 8}
    {"event": "resume", "round": 5, "held": {"w01": [4, "00ff"]}}          another process goes on from it
    {"event": "members", "quorum": 4, "f": 1}              from now on

What is not known is left out: a log without `accept` is not asked whether vectors were accepted. Logs come
from machines at work (`Recorder`, `RecordingMachine`) and from the record of a run (`of_record`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from varangian.server.protocol.events import (
    Close,
    Committed,
    Effect,
    Event,
    Fault,
    Members,
    Open,
    Push,
    Reject,
    Settled,
    Skip,
    Withdraw,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy, RunState

Logged = Mapping[str, Any]


class Recomputed(Protocol):
    """The parameters of a run, computed again from its vectors."""

    def commit(self, round: int, workers: Mapping[str, int], faults: Collection[str], /) -> str:
        """The digest of the parameters after this round; workers with the rounds of their models."""
        ...

    def resume(self, round: int, /) -> None:
        """Go back to the parameters before this round; asked if another process went on from there."""
        ...


@dataclass(frozen=True)
class Rules:
    """The rules that a history has to keep."""

    quorum: int = 1
    """The fewest answers of a round that is committed."""
    f: int = 0
    """The most proven faults of a round."""
    honest: Collection[str] = ()
    """Workers that never do what proves a fault, however often they are killed."""
    requires: Callable[[Collection[str], Collection[str]], str | None] | None = None
    """The condition of the rule on those who pushed and those proven faulty."""
    reference: Mapping[int, str] = field(default_factory=dict[int, str])
    """The parameters after each round, of a run without interruption."""
    recomputed: Recomputed | None = None


def check(events: Iterable[Logged], rules: Rules = Rules()) -> list[str]:
    """What is wrong with a history, a sentence each; nothing if it is in order."""
    log = [*events]
    return [*_Check(rules, any(event["event"] == "accept" for event in log)).problems(log)]


class _Check:
    def __init__(self, rules: Rules, told_of_vectors: bool) -> None:
        self._rules, self._told = rules, told_of_vectors
        self._quorum, self._f = rules.quorum, rules.f
        self._round = 0
        """The round that is decided next."""
        self._waiting: dict[tuple[str, int], str] = {}
        """The digest of each vector that was accepted and not used, by worker and round of its model."""
        self._ever = set[tuple[str, int, str]]()
        """All that were ever accepted, by any process."""
        self._used: dict[tuple[str, int], int] = {}
        """The round in which each vector was used."""
        self._parameters: dict[int, str] = {}
        """After each round."""
        self._outcomes: dict[tuple[Any, ...], str] = {}

    def problems(self, log: Sequence[Logged]) -> Iterator[str]:
        for event in log:
            match event["event"]:
                case "open":
                    if event["round"] != self._round:
                        yield f"round {event['round']} was opened where round {self._round} follows"
                case "accept":
                    yield from self._accepted(event["worker"], event["round"], event["digest"])
                case "withdraw":
                    gone = event["worker"]
                    self._waiting = {key: held for key, held in self._waiting.items() if key[0] != gone}
                case "fault" if event["worker"] in self._rules.honest:
                    what = f"was proven faulty in round {event['round']}: {event['reason']}"
                    yield f"{event['worker']} is honest and {what}"
                case "commit":
                    yield from self._committed(event)
                case "skip":
                    yield from self._decided(event["round"], "skipped")
                case "resume":
                    yield from self._resumed(event)
                case "members":
                    self._quorum, self._f = event.get("quorum", self._quorum), event.get("f", self._f)
                case _:
                    pass

    def _accepted(self, worker: str, round: int, digest: str) -> Iterator[str]:
        """A vector counts from now on; of several for one round only one ever does."""
        vector, of = (worker, round), f"the vector of {worker} for round {round}"
        if vector in self._used:
            yield f"{of} was accepted although round {self._used[vector]} has used one"
        elif vector in self._waiting:
            yield f"{of} was accepted although one was there"
        self._waiting[vector] = digest
        self._ever.add((worker, round, digest))

    def _decided(self, round: int, how: str) -> Iterator[str]:
        """A round is over: the next one follows."""
        if round != self._round:
            yield f"round {round} was {how} where round {self._round} follows"
        self._round = round + 1

    def _committed(self, event: Logged) -> Iterator[str]:
        round, faults = event["round"], sorted(event.get("faults", ()))
        yield from self._decided(round, "committed")
        yield from self._enough(event, faults)
        digests: Mapping[str, str] = event.get("digests") or {}
        for worker, made_for in (event.get("workers") or {}).items():
            yield from self._vector(round, worker, made_for, digests.get(worker))
        yield from self._model(event, faults, digests)

    def _enough(self, event: Logged, faults: Sequence[str]) -> Iterator[str]:
        """Whether the answers of a round allow it to be committed."""
        round, workers = event["round"], event.get("workers")
        if len(faults) > self._f:
            yield f"round {round} spent {len(faults)} faults where f = {self._f}: {', '.join(faults)}"
        if framed := [worker for worker in faults if worker in self._rules.honest]:
            yield f"round {round} names honest workers as faulty: {', '.join(framed)}"
        if workers is None:
            return
        if len(workers) + len(faults) < self._quorum:
            answers = f"{len(workers)} vectors and {len(faults)} faults"
            yield f"round {round} was committed with {answers}, below the quorum of {self._quorum}"
        if both := sorted(set(workers) & set(faults)):
            yield f"round {round} counts the vectors of faulty workers: {', '.join(both)}"
        if strangers := sorted({*(event.get("weights") or {})} - set(workers)):
            yield f"round {round} has weights of workers without a vector: {', '.join(strangers)}"
        requires = self._rules.requires
        if requires is not None and (reason := requires([*workers], faults)):
            yield f"round {round} was committed although the rule promises nothing: {reason}"

    def _vector(self, round: int, worker: str, made_for: int, digest: str | None) -> Iterator[str]:
        """Whether a vector that was used may be, here and now."""
        vector, of = (worker, made_for), f"the vector of {worker} for round {made_for}"
        if made_for > round:
            yield f"round {round} uses {of}, which is to come"
        if vector in self._used:
            yield f"round {round} uses {of}, which round {self._used[vector]} has used"
        self._used[vector] = round
        accepted = self._waiting.pop(vector, None)
        if not self._told or digest is None:
            return
        if accepted is None:
            yield f"round {round} uses {of}, which was not accepted"
        elif accepted != digest:
            yield f"round {round} uses {of} with digest {digest}; accepted was {accepted}"

    def _model(self, event: Logged, faults: Sequence[str], digests: Mapping[str, str]) -> Iterator[str]:
        """Whether the parameters are those that follow from the vectors."""
        round, parameters = event["round"], event.get("parameters")
        workers = event.get("workers")
        recomputed = self._rules.recomputed
        if recomputed is not None and workers is not None:
            again = recomputed.commit(round, workers, faults)
            if parameters != again:
                yield f"round {round} ended with parameters {parameters}; computed again they are {again}"
        if parameters is None:
            return
        expected = self._rules.reference.get(round)
        if expected not in (None, parameters):
            yield f"round {round} ended with parameters {parameters}, without interruption with {expected}"
        if workers is not None and digests:
            before = self._parameters.get(round - 1)
            made_of = tuple((w, made_for, digests.get(w)) for w, made_for in sorted(workers.items()))
            first = self._outcomes.setdefault((round, before, made_of, tuple(faults)), parameters)
            if first != parameters:
                yield f"round {round} was done twice from the same vectors, with {first} and {parameters}"
        self._parameters[round] = parameters

    def _resumed(self, event: Logged) -> Iterator[str]:
        """Another process of the server goes on: what came after the checkpoint has not happened."""
        round = event["round"]
        if round > self._round:
            yield f"the run went on from round {round} where round {self._round} follows"
        self._round = round
        self._used = {vector: used for vector, used in self._used.items() if used < round}
        self._parameters = {done: digest for done, digest in self._parameters.items() if done < round}
        self._waiting = {}
        for worker, (made_for, digest) in (event.get("held") or {}).items():
            if self._told and (worker, made_for, digest) not in self._ever:
                yield f"the run went on with a vector of {worker} for round {made_for} that nobody accepted"
            self._waiting[worker, made_for] = digest
        if self._rules.recomputed is not None:
            self._rules.recomputed.resume(round)


class Recorder:
    """The log of a machine at work."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._closed: dict[str, Any] | None = None

    def note(
        self, event: Event, effects: Sequence[Effect], state: RunState, parameters: str | None = None
    ) -> None:
        """What an event has done.

        Args:
            event: that the machine was given.
            effects: that it returned.
            state: after it.
            parameters: their digest after a round that is committed.
        """
        if effects and isinstance(effects[0], Reject):
            self._add(
                "reject", event, worker=getattr(event, "worker", None), reason=effects[0].refusal.name
            )
            return
        match event:
            case Push(worker, round, digest):
                self._add("accept", event, worker=worker, round=round, digest=digest.hex())
            case Settled(round, digests):
                for worker, digest in digests.items():
                    self._add("accept", event, worker=worker, round=round, digest=digest.hex())
            case Fault(worker, round, reason):
                self._add("fault", event, worker=worker, round=round, reason=reason)
            case Committed() if self._closed is not None:
                self._add("commit", event, **self._closed, parameters=parameters)
            case _:
                pass
        if isinstance(event, Fault | Withdraw) and event.worker not in state.taken:
            self._add("withdraw", event, worker=event.worker)
        for effect in effects:
            match effect:
                case Close(round=round):
                    vectors = {worker: state.held[worker] for worker in effect.workers}
                    self._closed = {
                        "round": round,
                        "workers": {worker: made_for for worker, (made_for, _) in vectors.items()},
                        "digests": {worker: digest.hex() for worker, (_, digest) in vectors.items()},
                        "faults": [*effect.faults],
                    }
                case Skip(round=round):
                    self._add("skip", event, round=round)
                case Members(gone=gone, quorum=quorum, f=f):
                    for worker in gone:  # what waits is not taken along
                        self._add("withdraw", event, worker=worker)
                    self._add("members", event, quorum=quorum, f=f, gone=[*gone])
                case Open(round):
                    self._add("open", event, round=round)
                case _:
                    pass

    def resume(self, state: RunState) -> None:
        """Another process goes on from this state."""
        held = {worker: [made_for, digest.hex()] for worker, (made_for, digest) in state.held.items()}
        self._closed = None
        self.events.append({"event": "resume", "round": state.round, "held": held})

    def _add(self, kind: str, event: Event, **told: Any) -> None:
        self.events.append({"at": event.at, "event": kind, "round": getattr(event, "round", None), **told})


class RecordingMachine(Machine):
    """A machine that logs what it does.

    Args:
        policy: of the run.
        recorder: of the run; that of the process before it, if there was one.
    """

    def __init__(self, policy: RunPolicy, recorder: Recorder | None = None) -> None:
        super().__init__(policy)
        self.recorder = Recorder() if recorder is None else recorder
        self.parameters: Callable[[], str | None] = lambda: None
        """The digest of the parameters of now."""

    def handle(self, event: Event) -> tuple[Effect, ...]:
        effects = super().handle(event)
        parameters = self.parameters() if isinstance(event, Committed) else None
        self.recorder.note(event, effects, self.state, parameters)
        return effects

    def restore(self, plain: Mapping[str, Any], *, connected: bool) -> None:
        super().restore(plain, connected=connected)
        self.recorder.resume(self.state)


def of_record(path: Path) -> Iterator[dict[str, Any]]:
    """The log of a run from its `rounds.jsonl`, as far as the record has what is asked."""
    for line in path.read_text("ascii").splitlines():
        record = json.loads(line)
        round = record["round"]
        if resumed := record.get("resumed"):
            yield {"event": "resume", "round": resumed["round"]}
        if members := record.get("membership"):
            yield {"event": "members", **members}
        if record["skipped"] is not None:
            yield {"event": "skip", "round": round}
            continue
        # Without the digests of its pushes a record says who took part only where all vectors are new.
        fresh = record["weights"] if record["ages"] is None else None
        digests: Mapping[str, str] | None = record.get("pushes") or None
        names = None if (told := digests or fresh) is None else {*told} - record["dropped"].keys()
        ages = record["ages"] or {}
        yield {
            "event": "commit",
            "round": round,
            "workers": names and {name: round - ages.get(name, 0) for name in sorted(names)},
            "digests": digests,
            "faults": [*record["dropped"]],
            "weights": fresh,
            "parameters": record.get("parameters"),
        }
