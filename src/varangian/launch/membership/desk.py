"""Desk of a run for its members: decides whether the run keeps all of its promises with other workers.

A change is checked as the settings of a new run are: the rule and its condition, quorum, participation,
memory. It is on the disk before anybody is told of it, and takes effect when the next round opens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from varangian.config import RunConfig
from varangian.launch.membership.changed_settings import change_of, with_members
from varangian.launch.membership.members_file import MembersFile
from varangian.protos.identity.bundle import NAME
from varangian.protos.network.descriptors import connections
from varangian.registry import ConfigError
from varangian.server.identity.sessions import Sessions
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase, RunState
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.transport.administration import Action, Changed, ChangeRefusedError
from varangian.worker.data.partition import PARTITIONS, Shared

DONE: dict[Action, str] = {"admit": "admitted", "drain": "drained", "expel": "expelled", "leave": "let go"}
BUSY = 2
"""Connections of a worker that is honest: one, and one that is dead and not yet noticed."""
MOST = 4
"""Connections of one that is not."""


class Run(Protocol):
    """What the desk asks of a run; a `ServerRun` is one."""

    @property
    def path(self) -> Path:
        """Of the run folder."""
        ...

    @property
    def start(self) -> RunConfig:
        """The settings of the start."""
        ...

    @property
    def latest(self) -> RunConfig:
        """The settings with the workers after the last change before this start of the server."""
        ...

    @property
    def members(self) -> MembersFile | None:
        """The last change before this start of the server; None if the workers are those of the start."""
        ...

    @property
    def machine(self) -> Machine: ...
    @property
    def took_part(self) -> Mapping[str, int]:
        """The last round of each worker in which its vector counted."""
        ...

    @property
    def over(self) -> bool:
        """Whether the run has ended or is about to."""
        ...

    @property
    def fixed(self) -> str:
        """Why its workers stay those of the start; empty if they may change."""
        ...

    def lacks(self, before: RunConfig, after: RunConfig, /) -> str:
        """What this machine lacks for more workers; empty if nothing."""
        ...


class Desk:
    """The desk of one run.

    Args:
        run: the run.
        coordinator: of it.
        sessions: of its workers.
    """

    def __init__(self, run: Run, coordinator: Coordinator, sessions: Sessions) -> None:
        self._run, self._coordinator, self._sessions = run, coordinator, sessions
        self._machine = run.machine
        self._config = run.latest
        """With the workers after the last change that was accepted."""
        self._kept = run.members or MembersFile(self._config.worker_names, self._config.f)
        self._connections = connections(len(sessions.names))
        """That the ports of this server have room for."""
        self._first = -1
        """The round with which the changes below take effect."""
        self._gone: dict[str, str] = {}
        self._expelled = set[str]()
        self._by: list[str] = []
        self._one_by_one = asyncio.Lock()
        self._changing = set[asyncio.Task[Changed]]()
        for name, how in self._kept.gone.items():
            sessions.expel(name, how)

    @property
    def round(self) -> int:
        return self._machine.state.round

    def listing(self) -> list[dict[str, Any]]:
        policy, state = self._machine.policy, self._machine.state
        following = policy.workers if policy.following is None else policy.following.workers
        connected = self._sessions.connected
        return [
            {
                "name": name,
                "state": self._state_of(name, policy.workers, following),
                "present": name in connected,
                "open_round": _answer(state, name),
                "last_round": self._run.took_part.get(name),
                "missed": state.history.missed.get(name, 0),
                "certificate": self._sessions.fingerprint(name) or "",
            }
            for name in sorted({*policy.workers, *following})
        ]

    def _state_of(self, name: str, now: tuple[str, ...], following: tuple[str, ...]) -> str:
        if name in following:
            return "member" if name in now else "admitted"
        how = self._gone.get(name, "")
        return (
            "expelled" if name in self._expelled else "leaving" if how.startswith("it left") else "draining"
        )

    async def change(self, action: Action, name: str, f: int | None, by: str) -> Changed:
        """Change the members from the next round on; see `MemberDesk`.

        All of it is done, or nothing, also if who has asked hangs up meanwhile.
        """
        task = asyncio.create_task(self._change(action, name, f, by))
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return await asyncio.shield(task)

    async def _change(self, action: Action, name: str, f: int | None, by: str) -> Changed:
        async with self._one_by_one:
            if (done := self._done_already(action, name)) is not None:
                return done
            self._check_possible(action, name)
            members = {*self._config.worker_names}
            members = members | {name} if action == "admit" else members - {name}
            f = self._config.f if f is None else f
            config = await asyncio.to_thread(self._checked, action, name, members, f)
            return await self._carry_out(action, name, by, config)

    def _done_already(self, action: Action, name: str) -> Changed | None:
        """The answer to what was asked for before, as by somebody who has not heard the answer."""
        policy = self._machine.policy
        leaves = name in policy.leaving and (action in ("drain", "leave") or name in self._expelled)
        comes = action == "admit" and name in self._config.worker_names and name not in policy.workers
        if not (leaves or comes) or policy.following is None:
            return None
        first = policy.following.first
        return Changed(f"{name} is {'gone' if leaves else 'a member'} from round {first} on already", first)

    def _check_possible(self, action: Action, name: str) -> None:
        """See that there is such a change.

        Raises:
            ChangeRefusedError: there is not.
        """
        state, policy, start = self._machine.state, self._machine.policy, self._run.start
        problem = ""
        members = self._config.worker_names
        if not NAME.fullmatch(name):
            rule = "a name has letters, digits, '.', '_' and '-', at most 63, the first a letter or a digit"
            raise ChangeRefusedError(f"{name[:70]!r} cannot be {DONE[action]}: {rule}.")
        if state.phase is Phase.FINISHED or self._run.over:
            problem = "the run is over, or about to be"
        elif state.round + 1 >= policy.rounds:
            problem = f"the open round {state.round} is the last, and it would take effect with the next"
        elif action != "admit" and name not in members and name not in policy.leaving:
            problem = f"the workers of the run are {_listed(members)}"
        elif action == "admit" and name in policy.leaving and policy.following is not None:
            problem = f"it is leaving with round {policy.following.first}; it can be admitted after that"
        elif action == "admit" and name in members:
            problem = "it is a worker of the run already"
        elif self._run.fixed:
            problem = self._run.fixed
        elif action == "admit" and not isinstance(start.partition, Shared):
            dealt = f"partition={PARTITIONS.name(start.partition)}"
            problem = f"{dealt} deals the samples among the workers of the start"
        if problem:
            raise ChangeRefusedError(f"{name} cannot be {DONE[action]}: {problem}.")

    def _checked(self, action: Action, name: str, members: set[str], f: int) -> RunConfig:
        """The settings with other members, if all promises of the run are kept with them.

        Raises:
            ChangeRefusedError: one is not.
        """
        what = f"{name} cannot be {DONE[action]}"
        if not members:
            raise ChangeRefusedError(f"{what}: no worker would be left.")
        try:
            config = with_members(self._config, members, f)
        except ConfigError as error:
            problem = error.problems[0]
            less = self._smaller_f(members, f)
            hint = "" if less is None else f" With --f {less} it could: then no more may be Byzantine."
            reason = f"{problem.path}: {problem.rule}".rstrip(".")
            raise ChangeRefusedError(f"{what}: {reason}.{hint}") from None
        if reason := self._lacking(config):
            raise ChangeRefusedError(f"{what}: {reason}.")
        return config

    def _smaller_f(self, members: set[str], f: int) -> int | None:
        """The largest f below this one with which the change would keep the promises; None without one."""
        for less in reversed(range(f)):
            try:
                with_members(self._config, members, less)
            except ConfigError:
                continue
            return less
        return None

    def _lacking(self, config: RunConfig) -> str:
        """What this machine lacks for the members of these settings; empty if nothing."""
        n, f = config.workers, config.f
        if n <= self._config.workers:
            return ""
        if (needed := BUSY * (n - f) + MOST * f) > self._connections * 3 // 4:
            places = self._connections * 3 // 4
            return (
                f"{n} workers need {needed} connections, and this server was started with {places} for them"
            )
        return self._run.lacks(self._config, config).rstrip(".")

    async def _carry_out(self, action: Action, name: str, by: str, config: RunConfig) -> Changed:
        try:
            await self._coordinator.make_room(change_of(config, {}, (), ()))
        except (MemoryError, RuntimeError) as error:  # the latter is what torch says
            reason = f"{name} cannot be {DONE[action]}: there is no memory for its vectors."
            raise ChangeRefusedError(reason) from error
        except OSError as error:
            raise ChangeRefusedError(f"{name} cannot be {DONE[action]}: {error}") from error
        if self._machine.policy.following is None:  # the changes before have taken effect
            self._gone, self._expelled, self._by = {}, set(), []
        asked = "left by itself" if action == "leave" else f"{DONE[action]} by {by}"
        with_f = f", f = {config.f} from then on" if config.f != self._config.f else ""
        self._by.append(f"{name} {asked}{with_f}")
        gone = dict(self._kept.gone)
        if action == "admit":
            gone.pop(name, None)
        else:
            gone[name] = self._gone[name] = f"it {asked}" if action == "leave" else f"it was {asked}"
            self._expelled |= {name} if action == "expel" else set()
        entry = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "action": action,
            "worker": name,
            "f": config.f,
            "by": by,
            "what": self._by[-1],
            "asked_in_round": self.round,
        }
        change = change_of(config, self._gone, self._expelled, self._by)
        kept = MembersFile(config.worker_names, config.f, gone, (*self._kept.changes, entry))
        try:
            await asyncio.to_thread(kept.write, self._run.path)
        except OSError as error:
            self._by.pop()
            if action != "admit":
                self._gone.pop(name, None)
                self._expelled.discard(name)
            reason = f"the change cannot be written to {self._run.path}: {error.strerror or error}"
            raise ChangeRefusedError(f"{name} cannot be {DONE[action]}: {reason}.") from None
        self._config, self._kept = config, kept
        if action == "admit":
            self._sessions.add(name)
            self._coordinator.pulls.admit(name)
        elif name not in self._machine.policy.workers:  # it was to be admitted
            self._sessions.depart(name, gone[name])
            self._coordinator.pulls.dismiss(name, f"{name} has left the run: {gone[name]}")
        first = self._coordinator.change_members(change)
        if action == "expel":
            self._sessions.expel(name, gone[name])
        n, quorum = config.workers, config.quorum
        means = "is a member" if action == "admit" else "is gone"
        numbers = f"{n} worker{'' if n == 1 else 's'}, quorum {quorum}, f = {config.f}"
        return Changed(f"{name} {means} from round {first} on: {numbers}", first)


def _answer(state: RunState, name: str) -> str:
    """What a worker has done in the open round."""
    for word, workers in (("pushed", state.held), ("faulty", state.faults), ("declined", state.declined)):
        if name in workers:
            return word
    return ""


def _listed(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
