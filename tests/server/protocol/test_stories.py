"""Scenarios as text: commands, a line of dashes, and what the machine of the run said.

A story reads like a bug report and is one: paste the commands, run with VARANGIAN_REWRITE=1, and the file
shows what happens; correct what should have happened, and it is a regression test.

    policy n=3 rounds=2 quorum=2 deadline=10 shortfall=wait f=1 [max_skips=10]
    policy (the same) choice=oldest:2,1.5       or buffered:SIZE,TAU or neighbourhoods:GRAPH
    at 3.5                      set the time
    offer|push|send w00 0 aa    an upload begins, is complete, or both; aa stands for the digest,
                                and - for one that comes at the end of the upload
    settled 0 w00=aa w01=bb     these uploads are complete, and nobody else's can count
    ready w00 0                 a worker asks for a model, of this round or a later one
    left w00                    its pull is over
    fault w00 0 not finite      the worker proves faulty
    decline w00 0 no memory     the worker has nothing to send in this round
    absent|present w00          no process of the worker is connected, or one is again
    withdraw w00 its certificate was revoked
    gone w00 0                  the upload is over without a push
    tick                        time has passed
    committed 0                 the closed round has become an update
    skipped 0 no guarantee      the closed round could not become one
    stop stopped on request     whoever runs the server ends the run
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from varangian.aggregators.graphs import GRAPHS
from varangian.protos.refusals import Refusal, Topic
from varangian.server.participation.asap import NeighbourhoodSelection
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.staleness import Polynomial
from varangian.server.participation.sync import Everyone
from varangian.server.protocol import events
from varangian.server.protocol.adaptive_waiting import AdaptiveWaiting
from varangian.server.protocol.events import Close, Effect, Event, RollCall
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy, Selection

STORIES = sorted((Path(__file__).parent / "stories").glob("*.txt"))
REWRITE = os.environ.get("VARANGIAN_REWRITE") == "1"


class Storyteller:
    machine: Machine
    now = 0.0

    def tell(self, command: str) -> Iterator[str]:
        """The lines that a command adds to the transcript."""
        verb, _, rest = command.partition(" ")
        if verb == "policy":
            self.machine = machine(rest)
        elif verb == "at":
            self.now = float(rest)
        else:
            for event in self.events(verb, rest):
                for effect in self.machine.handle(event):
                    yield line(effect, event)

    def events(self, verb: str, rest: str) -> Iterator[Event]:
        words = rest.split(maxsplit=2)
        match verb:
            case "offer" | "push":
                digest = b"" if words[2] == "-" else words[2].encode()
                yield getattr(events, verb.title())(words[0], int(words[1]), digest, self.now)
            case "send":
                yield from self.events("offer", rest)
                yield from self.events("push", rest)
            case "settled":
                round, *pairs = rest.split()
                digests = {w: d.encode() for w, _, d in (pair.partition("=") for pair in pairs)}
                yield events.Settled(int(round), digests, self.now)
            case "fault" | "decline":
                yield getattr(events, verb.title())(words[0], int(words[1]), words[2], self.now)
            case "absent" | "present":
                yield getattr(events, verb.title())(words[0], self.now)
            case "withdraw":
                yield events.Withdraw(words[0], rest.partition(" ")[2], self.now)
            case "ready":
                yield events.Ready(words[0], int(words[1]), self.now)
            case "left":
                yield events.Left(words[0], self.now)
            case "gone":
                yield events.Gone(words[0], int(words[1]), self.now)
            case "tick":
                yield events.Tick(self.now)
            case "committed":
                yield events.Committed(int(rest), self.now)
            case "skipped":
                round, _, reason = rest.partition(" ")
                yield events.Skipped(int(round), reason, self.now)
            case "stop":
                yield events.Stop(rest, self.now)
            case _:
                raise ValueError(f"A story has no command {verb!r}.")


def machine(text: str) -> Machine:
    given = dict(word.split("=") for word in text.split())
    choice = given.pop("choice", "")
    waiting = given.pop("waiting", None)
    policy = RunPolicy(
        workers=tuple(f"w{i:02}" for i in range(int(given.pop("n")))),
        deadline=float(given.pop("deadline")),
        shortfall=given.pop("shortfall"),
        waiting=None if waiting is None else waiting_of(waiting),
        selection=selection_of(choice) if choice else Everyone(),
        **{name: int(value) for name, value in given.items()},
    )
    return Machine(policy)


def waiting_of(text: str) -> AdaptiveWaiting:
    factor, floor, rounds = text.split(",")
    return AdaptiveWaiting(float(factor), float(floor), int(rounds))


def selection_of(text: str) -> Selection:
    name, _, rest = text.partition(":")
    match name, rest.split(","):
        case "oldest", [k, gather]:
            return LongestAbsent(int(k), float(gather))
        case "buffered", [size, tau]:
            return BufferSelection(int(size), int(tau), Polynomial(a=1.0))
        case "neighbourhoods", [graph]:
            return NeighbourhoodSelection(GRAPHS.build(graph, "graph"))
        case _:
            raise ValueError(f"A story has no choice {text!r}.")


def line(effect: Effect, event: Event) -> str:
    match effect:
        case events.Accept(worker, round):
            what = "may upload" if isinstance(event, events.Offer) else "counts"
            return f"{worker} {what} in round {round}"
        case events.Duplicate(worker, round):
            return f"duplicate of {worker} in round {round}"
        case events.Reject(refusal, round):
            return f"reject: {refusal.name}, round is {round}"
        case RollCall():
            return roll_call(effect)
        case events.Open(round):
            return f"open round {round}"
        case events.Invite(worker, round):
            return f"invite {worker} to round {round}"
        case events.Finish(reason):
            return f"finish: {reason}"
        case events.Forget(worker):
            return f"forget what is kept of {worker}"


def roll_call(ended: RollCall) -> str:
    parts = {
        "pushed": ", ".join(aged(ended, worker) for worker in ended.workers),
        "faulty": ", ".join(f"{worker} ({reason})" for worker, reason in ended.faults.items()),
        "declined": ", ".join(f"{worker} ({reason})" for worker, reason in ended.declined.items()),
        "missing": ", ".join(ended.missing),
        "not waited for": ", ".join(f"{worker} ({why})" for worker, why in spared(ended).items()),
        "revoked": ", ".join(ended.revoked),
    }
    who = "".join(f"\n  {name}: {value}" for name, value in parts.items() if value)
    verb = "close" if isinstance(ended, Close) else "skip"
    return f"{verb} round {ended.round} after {ended.waited:g} s{who}\n  because {ended.because}"


def spared(ended: RollCall) -> dict[str, str]:
    """Who was not waited for although it was there."""
    return {worker: why for worker, why in ended.not_waited_for.items() if why != "absent"}


def aged(ended: RollCall, worker: str) -> str:
    if not isinstance(ended, Close) or not ended.ages.get(worker):
        return worker
    return f"{worker} (of round {ended.round - ended.ages[worker]}, times {ended.factors[worker]:g})"


def told(text: str) -> str:
    """The same story with the transcript of today's machine."""
    storyteller = Storyteller()
    return "\n".join(block(storyteller, chapter) for chapter in text.strip().split("\n\n")) + "\n"


def block(storyteller: Storyteller, chapter: str) -> str:
    commands = chapter.partition("\n----")[0]
    transcript: list[str] = []
    for command in commands.splitlines():
        if not command.startswith("#"):
            transcript += storyteller.tell(command)
    wake_at = storyteller.machine.wake_at
    transcript.append("wake never" if wake_at is None else f"wake at {wake_at:g}")
    return "\n".join([commands, "----", *transcript, ""])


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path):
    text = path.read_text()
    now = told(text)
    if REWRITE:
        path.write_text(now)
    else:
        assert now == text


def test_every_refusal_has_its_place_in_a_story():
    text = "".join(path.read_text() for path in STORIES)
    timely = [refusal for refusal in Refusal if refusal.value.topic is Topic.TIME]
    untold = {refusal for refusal in timely if f"reject: {refusal.name}," not in text}
    # A duplicate has an effect of its own, and the others are not for this machine to decide.
    elsewhere = {Refusal.RESTARTED, Refusal.AGE, Refusal.STOPPING, Refusal.REPLACED}
    assert untold == {Refusal.DUPLICATE, *elsewhere}
    assert "duplicate of" in text
