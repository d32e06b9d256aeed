"""Programs of a run that are killed at random moments, and the digests of the run in the end.

    python benchmarks/kills.py --who server --participation sync --model mlp --times 50
    python benchmarks/kills.py --who worker --participation fedlaavg --model large --times 50
    python benchmarks/kills.py --who group --times 20
    python benchmarks/kills.py --who worker --attack replay --times 20
    python benchmarks/kills.py --at-end --rounds 30 --times 20
    python benchmarks/kills.py --inside
    python benchmarks/kills.py --sigterm 50

A run of a server and four workers in processes of their own, with a rule, an optimizer, an average of the
model and workers that all remember. Again and again, after a random time, one program is killed with
SIGKILL and started again by the same command with `--resume`: the server, a worker, or `varangian run` with
all of its children. The rounds of a run without interruption come from a simulation. Each kill is judged by
itself: the digests of the parameters of all rounds up to the next kill, also of those that are done twice,
and in the end the digest of the result.

`--at-end` kills the server once in each run, in the second after its last round: workers may have heard of
the end by then, and left. `--inside` kills it inside the writing of checkpoints: at the first call of the
system for one, at the second, and so on, also in the middle of a piece of data. `--sigterm` asks the server
to stop: it should exit with code 0, and leave a checkpoint of as many rounds as are on record.

A run that has ended before enough kills is followed by another one with another seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.supervised import Supervised, started  # noqa: E402
from tests.history import Rules, check, of_record  # noqa: E402

from varangian.bench.machine import load, machine  # noqa: E402
from varangian.launch.checkpoints.folder import CheckpointFolder  # noqa: E402

NAMES = ("w00", "w01", "w02", "w03")
PATIENCE = 300.0
"""Seconds in which something has to happen."""
IN_TIME = 30.0
"""Seconds in which a server that is asked to stop has to."""
PARTICIPATION = {
    "sync": ("participation=sync", "server.quorum=4"),
    "fedavg": (
        "participation.fedavg.participants=3",
        "participation.fedavg.gather=60",
        "server.quorum=3",
    ),
    "fedlaavg": (
        "participation.fedlaavg.participants=3",
        "participation.fedlaavg.gather=60",
        "server.quorum=3",
    ),
}
COMMON = (
    *("workers=4", "f=1", "aggregator=centered_clipping", "worker.momentum=0.9"),
    *("ema.decay=0.9", "ema.reference_batch=128"),
    # Whoever is away is waited for, so that the same workers answer each round.
    *(
        "server.deadline=120",
        "server.wait_factor=null",
        "server.wait_rounds=null",
        "server.absent_after=60",
    ),
)


@dataclass(frozen=True)
class Size:
    """The model of a run, and how long it is."""

    settings: tuple[str, ...]
    rounds: int
    every: int
    """Rounds from one checkpoint to the next."""


MODELS = {
    "mlp": Size(("model=mlp", "optimizer.name=adam", "optimizer.lr=0.01"), 400, 10),
    "large": Size(("model.mlp.hidden=[3140,3140]", "optimizer.name=adam", "optimizer.lr=0.0001"), 40, 5),
}
"""By name; the large one has 10.1 million parameters."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--who", choices=["server", "worker", "group"], default="server")
    parser.add_argument("--participation", choices=[*PARTICIPATION], default="sync")
    parser.add_argument("--model", choices=[*MODELS], default="mlp")
    parser.add_argument(
        "--attack", help="of the last worker, as the setting `byzantine.attack`; by default none"
    )
    parser.add_argument("--times", type=int, default=50, help="kills; by default 50")
    parser.add_argument("--seed", type=int, default=1, help="of the run, and of the moments")
    parser.add_argument("--rounds", type=int, help="of each run, in place of those of the model")
    parser.add_argument("--inside", action="store_true", help="kill inside the writing of checkpoints")
    parser.add_argument("--at-end", action="store_true", help="kill only after the last round")
    parser.add_argument("--sigterm", type=int, metavar="N", help="ask the server to stop so often instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs here")
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == [AS_SERVER]:
        serve_and_die(int(sys.argv[2]), sys.argv[3:])
        return
    args = arguments()
    where = machine()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="varangian-kills-") as made:
        kills = [*carried_out(args, args.keep or Path(made))]
    wrong = [kill for kill in kills if kill["problems"]]
    slow = [kill["seconds"] for kill in kills if kill["seconds"] is not None]
    found = {
        "machine": where | {"load_at_end": load()},
        "settings": {name: str(value) for name, value in vars(args).items() if value is not None},
        "kills": len(kills),
        "as_if_nothing_had_happened": len(kills) - len(wrong),
        "problems": wrong[:20],
        "seconds_to_the_next_round": slow and {"median": statistics.median(slow), "most": max(slow)},
        "seconds": time.monotonic() - began,
        "each": kills,
    }
    text = json.dumps(found, indent=2)
    print(json.dumps({key: value for key, value in found.items() if key != "each"}, indent=2))
    if args.json:
        args.json.write_text(f"{text}\n")
    sys.exit(1 if wrong else 0)


def carried_out(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Runs until there were enough kills; what is known of each kill."""
    left = args.sigterm or args.times
    seed = args.seed
    size = MODELS[args.model]
    rounds = args.rounds or size.rounds
    while left > 0:
        settings = (
            *COMMON,
            *PARTICIPATION[args.participation],
            *size.settings,
            *(f"rounds={rounds}", f"seed={seed}", f"server.seed={seed}", "evaluate.every=20"),
            *(("byzantine.count=1", f"byzantine.attack={args.attack}") if args.attack else ()),
        )
        place = folder / f"{args.who}-{args.participation}-{args.model}-{seed}"
        place.mkdir(parents=True)
        reference = Reference.of(settings, place / "reference")
        kept = (*settings, f"server.checkpoint.every={size.every}")
        run = Run(args, kept, place, reference, random.Random(seed), size.every, rounds)
        for kill in run.kills(left):
            left -= 1
            print(json.dumps(kill), file=sys.stderr, flush=True)
            yield kill
        seed += 1
        if args.inside:
            return


@dataclass(frozen=True)
class Reference:
    """A run without interruption."""

    digest: str
    parameters: dict[int, str]
    """After each round; empty if its record has no digests."""

    @classmethod
    def of(cls, settings: tuple[str, ...], folder: Path) -> Reference:
        """Simulate it."""
        command = [sys.executable, "-m", "varangian", "run", *settings, "backend=simulate"]
        command += [f"output={folder}", "--format", "plain"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        (run,) = folder.iterdir()
        events = [event for event in of_record(run / "rounds.jsonl") if event["event"] == "commit"]
        known = {event["round"]: event["parameters"] for event in events if event["parameters"]}
        digest = json.loads((run / "result.json").read_text())["digest"]
        return cls(digest, known)


class Run:
    """One run that is interrupted.

    Args:
        args: of the command.
        settings: of the run.
        folder: for all that it writes.
        reference: what it should come to.
        chance: when the kills are.
        every: rounds from one checkpoint to the next.
        rounds: of the run.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        settings: tuple[str, ...],
        folder: Path,
        reference: Reference,
        chance: random.Random,
        every: int,
        rounds: int,
    ) -> None:
        self._args, self._reference, self._chance = args, reference, chance
        self._every, self._rounds = every, rounds
        inside = [sys.executable, __file__, AS_SERVER, "0"] if args.inside else ()
        self._programs = Supervised(folder, settings, NAMES, whole=args.who == "group", server=inside)
        self._pace = 0.0
        """Seconds of a round."""
        quorum = next(int(text.partition("=")[2]) for text in settings if text.startswith("server.quorum="))
        honest = NAMES[:-1] if args.attack else NAMES
        self._rules = Rules(quorum, 1, honest=honest, reference=reference.parameters)
        self._most = 0
        self._judged = 0
        """Lines of the record that were looked at."""
        self._over = False
        """Whether the server was killed after it had said that it ended."""
        self._late: str | None = None
        """The worker that was killed after it had heard of the end, and finds no server any more."""

    def kills(self, most: int) -> Iterator[dict[str, Any]]:
        """Kill until the run has ended, or that often; then let it end."""
        last: dict[str, Any] | None = None
        self._most = most
        act = self._sigterm if self._args.sigterm else self._inside if self._args.inside else self._kill
        with started(self._programs):
            self._measure()
            count = 0
            while count < most and self._programs.server.code is None:
                kill = act(count)
                if last is not None:
                    yield self._judge(last)
                if kill is None:  # the run had ended
                    last = None
                    break
                last, count = kill, count + 1
            code = (
                0 if self._over else self._programs.server.wait(PATIENCE + 20 * self._pace * self._rounds)
            )
            ended = [f"the server ended with {code}:\n{self._programs.server.tail(600)}"] if code else []
            result = {} if code else self._programs.result()
            if not code and result["digest"] != self._reference.digest:
                ended.append(f"the digest is {result['digest']} and should be {self._reference.digest}")
            ended += self._unasked()
            if last is not None:
                yield self._judge(last, ended)
            elif ended:
                raise RuntimeError("\n".join(ended))

    def _measure(self) -> None:
        """Take the time of a few rounds; rounds of a server that dies at once have none."""
        programs = self._programs
        if not self._args.inside and programs.until_lines(1, PATIENCE):
            began, before = time.monotonic(), programs.count()
            if programs.until_lines(before + self._every // 2, PATIENCE):
                self._pace = (time.monotonic() - began) / max(1, programs.count() - before)

    def _kill(self, number: int) -> dict[str, Any] | None:
        """Kill one program after a random time, and start it again."""
        programs = self._programs
        victim = programs.server
        if self._args.who == "worker":
            victim = programs.workers[self._chance.choice(NAMES)]
        if not self._wait():
            return None
        victim.kill()
        self._over = victim is programs.server and programs.has_ended()
        at = programs.count()
        # One that has heard of the end, and is killed in the moment before it exits, hears nothing again.
        heard = victim is not programs.server and HEARD in victim.tail().rpartition("--- start")[2]
        self._late = victim.name if heard else None
        if self._over:
            return {"kill": number, "victim": victim.name, "lines": at, "seconds": None, "problems": []}
        victim.start()
        began = time.monotonic()
        seconds = time.monotonic() - began if programs.until_lines(at, PATIENCE) else None
        return {"kill": number, "victim": victim.name, "lines": at, "seconds": seconds, "problems": []}

    def _sigterm(self, number: int) -> dict[str, Any] | None:
        """Ask the server to stop after a random time; it should leave a checkpoint."""
        programs, problems = self._programs, list[str]()
        server = programs.server
        if not self._wait():
            return None
        server.signal(signal.SIGTERM)
        try:
            code = server.wait(IN_TIME)
        except subprocess.TimeoutExpired:
            code = -1
            problems.append(f"it went on for {IN_TIME:g} s")
            server.kill()
        lines = programs.lines()
        following = lines[-1]["round"] + 1 if lines else 0
        run = programs.run
        rounds = CheckpointFolder(run).rounds() if run else []
        if code:
            problems.append(f"it exited with {code}:\n{server.tail(600)}")
        if following and following != max(rounds, default=0):
            problems.append(f"{following} rounds are on record, and checkpoints of the rounds {rounds}")
        at = programs.count()
        if following == self._rounds and not problems:  # it was at its end: there is no run to go on with
            return {"kill": number, "victim": "server", "lines": at, "seconds": None, "problems": []}
        server.start()
        began = time.monotonic()
        seconds = time.monotonic() - began if programs.until_lines(at, PATIENCE) else None
        return {"kill": number, "victim": "server", "lines": at, "seconds": seconds, "problems": problems}

    def _inside(self, number: int) -> dict[str, Any] | None:
        """Let the server kill itself at a call of the system for a checkpoint."""
        server = self._programs.server
        code = server.wait(PATIENCE + 20 * self._pace * self._rounds)
        if code == 0:
            return None
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the server ended with {code}:\n{server.tail()}")
        at = self._programs.count()
        place = server.command.index(AS_SERVER) + 1
        server.command[place] = str(number + 1 if number + 1 < self._most else NEVER)
        server.start()
        return {"kill": number, "victim": f"call {number}", "lines": at, "seconds": None, "problems": []}

    def _wait(self) -> bool:
        """Wait for a random moment; False if the run has ended meanwhile.

        As a rule up to twice the time from one checkpoint to the next after a round; one time of four at
        any moment after the start, when there may be none yet.
        """
        programs = self._programs
        if self._args.at_end:
            while programs.count() < self._rounds:
                if not programs.until_lines(programs.count(), PATIENCE):
                    return False
            time.sleep(self._chance.random())
        elif self._chance.random() < 0.75:
            if not programs.until_lines(programs.count(), PATIENCE):
                return False
            time.sleep(2 * self._every * self._pace * self._chance.random())
        else:
            time.sleep(3.0 * self._chance.random())
        return programs.server.code is None

    def _unasked(self) -> list[str]:
        """Programs that ended by themselves before the run had."""
        found = []
        for worker in self._programs.workers.values():
            if worker.name == self._late:
                continue
            try:
                code = worker.wait(IN_TIME)
            except subprocess.TimeoutExpired:
                found.append(f"{worker.name} did not hear of the end")
                continue
            if code:
                found.append(f"{worker.name} ended with {code}:\n{worker.tail(600)}")
        return found

    def _judge(self, kill: dict[str, Any], more: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
        """Add what is wrong with the rounds since the kill."""
        run = self._programs.run
        found = [*kill["problems"], *more]
        if run is not None:
            record = run / "rounds.jsonl"
            whole, _, _ = record.read_bytes().rpartition(b"\n")
            copy = self._programs.output.parent / "judged.jsonl"
            copy.write_bytes(whole + b"\n" if whole else b"")
            problems = check(of_record(copy), self._rules)
            found += problems[self._judged :]
            self._judged = len(problems)
        return {**kill, "problems": found}


HEARD = "rounds are done"
"""Of the last line of a worker."""
AS_SERVER = "--as-server"
"""Before the number of the call at which a server kills itself, and its arguments."""
NEVER = -1
"""In the place of that number."""


def serve_and_die(call: int, argv: list[str]) -> None:
    """`varangian` with these arguments, which dies at this call of the system for a checkpoint."""
    from varangian import files
    from varangian.cli.main import main as command

    made = 0

    def counted(of: Callable[[], bool], first: Callable[[], None] = lambda: None) -> None:
        nonlocal made
        if not of():
            return
        if made == call:
            first()
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1

    def is_checkpoint(descriptor: int) -> bool:
        return "/checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}")

    write, replace, unlink, fsync = os.write, os.replace, os.unlink, files.fsync

    def dying_write(descriptor: int, data: Any) -> int:
        half = memoryview(data)[: len(data) // 2]
        counted(lambda: is_checkpoint(descriptor), lambda: print(write(descriptor, half), file=sys.stderr))
        return write(descriptor, data)

    def dying_fsync(descriptor: int) -> None:
        counted(lambda: is_checkpoint(descriptor))
        fsync(descriptor)

    def dying_replace(old: Any, new: Any, **given: Any) -> None:
        counted(lambda: "/checkpoints/" in os.fspath(new))
        replace(old, new, **given)

    def dying_unlink(path: Any, **given: Any) -> None:
        counted(lambda: "/checkpoints/" in os.fspath(path))
        unlink(path, **given)

    os.write, os.replace, os.unlink, files.fsync = dying_write, dying_replace, dying_unlink, dying_fsync
    sys.exit(command(argv))


if __name__ == "__main__":
    main()
