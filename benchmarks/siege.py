"""One volume attack after the other, on a real server with honest workers in real rounds.

    python benchmarks/siege.py --json benchmarks/results/siege-HARDWARE.json
    python benchmarks/siege.py status_storm half_join --mode tokens --who stranger
    python benchmarks/siege.py --list

`varangian server` and `varangian worker` are processes as anybody would start them. Attackers are other
processes, of low priority, since on one machine they would take the processor itself away; they have the
certificate (or the token) of one of the f Byzantine workers, or none. A line for each attack: rounds a
second before, while and after it; how long a new connection waits for `Status`; the most memory that the
server took, and what it had promised to take; which honest workers were there afterwards, and after how
long; refusals by code; and what the attackers have sent.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.hostile import storms  # noqa: E402
from tests.hostile.http2 import Line  # noqa: E402
from tests.hostile.raiders import Raiders  # noqa: E402
from tests.hostile.siege import Target  # noqa: E402
from tests.hostile.wire import Mark  # noqa: E402

from varangian.bench.machine import load, machine  # noqa: E402
from varangian.config import build  # noqa: E402
from varangian.config import load as load_config  # noqa: E402
from varangian.protos import ps_pb2  # noqa: E402
from varangian.server.identity.sessions import make_token  # noqa: E402
from varangian.worker.training.compute import WorkerCompute  # noqa: E402

WORKERS, TRAITOR = 8, "w07"
HONEST = tuple(f"w{i:02d}" for i in range(WORKERS - 1))
PROCESSES = (HONEST[:4], HONEST[4:6], HONEST[6:])
"""Which honest workers share a process."""
SECRET = "a secret that only this benchmark has"
MODES = ("tls", "chunks", "tokens")
CALM, PATIENCE, QUIET = 2.0, 60.0, 5.0
"""Seconds of rounds before and after an attack; until everybody is there again; for one `Status`."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("attacks", nargs="*", help="names; by default all")
    parser.add_argument("--mode", choices=MODES, default="tls", help="chunks: TLS without a data port")
    parser.add_argument("--who", choices=("worker", "stranger", "both"), default="both")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2, help="of attackers")
    parser.add_argument("--seconds", type=float, default=10, help="of each attack")
    parser.add_argument("--hidden", type=int, default=64, help="the width of the model")
    parser.add_argument("--deadline", type=float, default=1, help="of a round")
    parser.add_argument("--files", type=int, help="the limit of open files of the server, hard and soft")
    parser.add_argument(
        "--restart",
        action="store_true",
        help="kill an honest worker when the attack begins, and start it anew",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here, too")
    parser.add_argument("--log", type=Path, metavar="DIR", help="keep what server and workers wrote")
    parser.add_argument("--list", action="store_true", help="the attacks, and nothing else")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.list:
        for name, found in storms.STORMS.items():
            print(f"{name:22}{found.about}")
        return 0
    where, rows = machine(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        camp = Camp(args, args.log or Path(folder))
        try:
            print(HEAD, flush=True)
            for who in ("worker", "stranger") if args.who == "both" else (args.who,):
                for name in args.attacks or storms.possible(camp.mark(who), args.mode != "chunks"):
                    rows.append(camp.attacked(name, who))
                    print(line(rows[-1]), flush=True)
        finally:
            ends = camp.close()
            camp.raiders.close()
    print(f"server: exit status {ends}; bound {camp.bound / 1e6:.0f} MB", flush=True)
    found = {"machine": where | {"load_at_end": load()}, "bound_mb": camp.bound / 1e6, "rows": rows}
    if args.json:
        args.json.write_text(f"{json.dumps(found | {'exit': ends}, indent=2)}\n")
    return 0


HEAD = (
    "| attack | who | rounds/s before, while, after | health ms p50, p99 (lost) | MB before, peak, after | "
    "lost (back after s) | log kB | refusals | sent |\n|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    rates = ", ".join(f"{row[key]:.1f}" for key in ("before", "during", "after"))
    health = f"{row['p50']:.0f}, {row['p99']:.0f} ({row['unanswered']} of {row['asked']})"
    memory = f"{row['mb_before']:.0f}, {row['mb_peak']:.0f}, {row['mb_after']:.0f}"
    memory += " **over**" if row["over"] else ""
    lost = ", ".join(row["lost"]) or "nobody"
    if row["lost"]:
        lost = f"**{lost}**"
    lost += f" ({row['back']:.0f})" if row["dead"] is None else f" **server ended: {row['dead']}**"
    if row["dropped"]:
        lost += f" **dropped {row['dropped']}**"
    refusals = " ".join(f"{code} {count}" for code, count in sorted(row["refusals"].items()))
    sent = " ".join(f"{key} {count}" for key, count in sorted(row["sent"].items()))
    return (
        f"| {row['attack']} | {row['who']} | {rates} | {health} | {memory} | {lost} | {refusals} | {sent} |"
    )


class Camp:
    """A server, its honest workers, and what is known about them."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.certs = self.folder / "certs" if args.mode != "tokens" else None
        self.ends = list[int | None]()
        settings = [
            f"workers={WORKERS}",
            "f=1",
            "rounds=1000000",
            "data=digits",
            f"model.mlp.hidden={args.hidden}",
            "aggregator=trimmed_mean",
            f"server.deadline={args.deadline}",
            "byzantine={count: 1, attack: sign_flip}",
            "delays={constant: {factor: 2, step: 0.05, workers: []}}",
            "evaluate.every=100000",
            f"output={self.folder / 'runs'}",
            *(["server.data_port=null"] if args.mode == "chunks" else []),
        ]
        self.settings = settings
        worker_compute = WorkerCompute(build.task(load_config(None, settings)))
        self.layout, self.common = worker_compute.layout.text, worker_compute.common.text
        self.size = 4 * worker_compute.layout.numel
        if self.certs:
            self._certify()
        self.raiders = Raiders(args.processes)
        self.open()

    def _certify(self) -> None:
        assert self.certs
        self._varangian("certs", "init", str(self.certs))
        self._varangian("certs", "issue", str(self.certs), "--server", "127.0.0.1")
        self._varangian("certs", "issue", str(self.certs), *HONEST, TRAITOR)

    def _varangian(self, *words: str) -> None:
        command = [sys.executable, "-m", "varangian", *words]
        subprocess.run(command, check=True, capture_output=True, env=self._environment())

    def _environment(self, **more: str) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"} | more

    # beginning and end

    def open(self) -> None:
        """Start everybody, and wait for the first rounds."""
        self.records = list[tuple[float, dict[str, Any]]]()
        secure = ["--certs", str(self.certs / "server")] if self.certs else ["--insecure"]
        words = ["server", *self.settings, "--bind", "127.0.0.1:0", *secure, "--format", "json"]
        number = len(self.ends)
        self.errors = self.folder / f"server-{number}.log"
        self.server = self._process(
            words, self.errors, subprocess.PIPE, self.args.files, VARANGIAN_SECRET=SECRET
        )
        self._reader = threading.Thread(target=self._read, args=(self.server,), daemon=True)
        self._reader.start()
        self.address = self._said(r"serving at ([^,]*),")
        self.bound = self._bound()
        self.workers = [self._worker(names, number) for names in PROCESSES]
        self.status = self._status()
        self._until(lambda: len(self.records) > 5 and not self._missing(), 120)

    def _process(
        self, words: list[str], log: Path, output: int | None = None, files: int | None = None, **more: str
    ) -> subprocess.Popen[str]:
        limit = ["prlimit", f"--nofile={files}:{files}"] if files else []
        command = [*limit, sys.executable, "-m", "varangian", *words]
        with log.open("w") as errors:
            return subprocess.Popen(
                command, env=self._environment(**more), stdout=output or errors, stderr=errors, text=True
            )

    def _worker(self, names: tuple[str, ...], number: int) -> subprocess.Popen[str]:
        secure = ["--certs", str(self.certs)] if self.certs else ["--insecure"]
        chosen = [word for name in names for word in ("--name", name)]
        tokens = " ".join(f"{name}:{make_token(name, SECRET.encode())}" for name in names)
        words = ["worker", *self.settings, "--server", self.address, *secure, *chosen]
        return self._process(words, self.folder / f"{names[0]}-{number}.log", VARANGIAN_TOKEN=tokens)

    def close(self) -> list[int | None]:
        """End everybody; how the servers of this benchmark have ended."""
        for process in (*self.workers, self.server):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in (*self.workers, self.server):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._reader.join(5)
        self.ends.append(self.server.returncode)
        return self.ends

    def _read(self, server: subprocess.Popen[str]) -> None:
        assert server.stdout
        records = self.records
        for text in server.stdout:
            with suppress(json.JSONDecodeError):
                records.append((time.monotonic(), json.loads(text)))

    def _said(self, pattern: str) -> str:
        self._until(lambda: re.search(pattern, self.errors.read_text()), 60)
        found = re.search(pattern, self.errors.read_text())
        if found is None:
            raise RuntimeError(self.errors.read_text())
        return found[1]

    def _bound(self) -> float:
        """Bytes that the server says it takes at most."""
        manifest = max(
            (self.folder / "runs").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime
        )
        found = re.search(r"at most ([\d.]+) ([kMG])B", json.loads(manifest.read_text())["memory"])
        assert found
        return float(found[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[found[2]]

    # what is seen from outside

    def mark(self, who: str) -> Mark:
        """The knowledge of an attacker."""
        host, _, port = self.address.rpartition(":")
        return Mark(
            host=host,
            port=int(port),
            data_port=self.status.data_port,
            certs=self.certs,
            name=TRAITOR if who == "worker" else None,
            token=make_token(TRAITOR, SECRET.encode()),
            others=HONEST,
            run=self.status.run_id,
            layout=self.layout,
            common=self.common,
            size=self.size,
        )

    def _status(self) -> ps_pb2.StatusReply:
        """By the certificate of the server itself, on a new connection."""
        with Line(Target(self.address, 1, self.certs), "server") as wire:
            stream = wire.call("Status")
            wire.message(stream, b"", end=True)
            found = wire.answer(stream, QUIET)
            if found.get("grpc-status") != "0":
                raise TimeoutError(str(found))
            events = (event for event in wire.events if getattr(event, "stream_id", None) == stream)
            data = b"".join(event.data for event in events if hasattr(event, "data"))
        return ps_pb2.StatusReply.FromString(data[5:])

    def _missing(self) -> set[str]:
        """The honest workers that the last round did without."""
        if not self.records:
            return set(HONEST)
        _, record = self.records[-1]
        return set(HONEST) & {*record["missing"], *record["declined"], *record["dropped"]}

    def _is_alone(self) -> bool:
        """Whether the attacker is taken to be gone: while it seems to be there, rounds wait for it."""
        with suppress(Exception):
            return self._status().present == len(HONEST)
        return False

    def _memory(self, key: str) -> float:
        text = Path(f"/proc/{self.server.pid}/status").read_text()
        found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
        return float(found[1]) * 1024 / 1e6 if found else 0.0

    def _rate(self, since: float, until: float) -> float:
        rounds = sum(since <= at < until for at, _ in list(self.records))
        return rounds / (until - since)

    def _refusals(self) -> dict[str, int]:
        for _ in range(5):
            with suppress(Exception):
                pairs = (text.split() for text in self._status().refusals.splitlines())
                return {code: int(count) for code, count in pairs}
        return {}

    def _restart(self) -> None:
        """Kill the last process of honest workers, and start it anew."""
        self.workers[-1].kill()
        self.workers[-1].wait()
        self.workers[-1] = self._worker(PROCESSES[-1], len(self.ends))

    @staticmethod
    def _until(wanted: Any, limit: float) -> float:
        """Wait for something, but not for ever; how long it took."""
        began = time.monotonic()
        while not wanted() and time.monotonic() - began < limit:
            time.sleep(0.1)
        return time.monotonic() - began

    # one attack

    def attacked(self, name: str, who: str) -> dict[str, Any]:
        """Before, while and after it."""
        self._until(self._is_alone, PATIENCE)
        began = time.monotonic()
        time.sleep(CALM)
        row: dict[str, Any] = {"attack": name, "who": who, "before": self._rate(began, time.monotonic())}
        earlier, first = self._refusals(), len(self.records)
        said = self.errors.stat().st_size
        row["mb_before"] = self._memory("VmRSS")
        Path(f"/proc/{self.server.pid}/clear_refs").write_text("5")
        began = time.monotonic()
        with Health(self) as health:
            self.raiders.begin(name, self.mark(who), self.args.connections)
            if self.args.restart:
                self._restart()
            time.sleep(self.args.seconds)
            row["during"] = self._rate(began, time.monotonic())
            row["sent"] = self.raiders.end()
        row |= health.found
        row["mb_peak"] = 0.0
        if self.server.poll() is None:
            seen = len(self.records)
            row["back"] = self._until(
                lambda: len(self.records) > seen + 2 and not self._missing(), PATIENCE
            )
            calm = time.monotonic()
            time.sleep(CALM)
            row["after"] = self._rate(calm, time.monotonic())
            row["mb_after"] = self._memory("VmRSS")
            row["mb_peak"] = self._memory("VmHWM")
            later = self._refusals()
            row["refusals"] = {code: n - earlier.get(code, 0) for code, n in later.items()}
            row["refusals"] = {code: n for code, n in row["refusals"].items() if n}
        else:
            row |= {"back": PATIENCE, "after": 0.0, "mb_after": 0.0, "refusals": {}}
        row["dead"] = self.server.poll()
        row["log_kb"] = (self.errors.stat().st_size - said) / 1e3
        row["over"] = row["mb_peak"] * 1e6 > self.bound
        left = [process.poll() for process in self.workers]
        row["lost"] = sorted(self._missing()) if row["dead"] is None else []
        row["dropped"] = sorted({n for _, r in self.records[first:] for n in r["dropped"] if n in HONEST})
        row["worker_exits"] = [code for code in left if code is not None]
        if row["lost"] or row["dead"] is not None or row["worker_exits"]:
            self.close()
            self.open()
        return row


class Health:
    """Asks how the server is, twice a second, each time on a new connection."""

    def __init__(self, camp: Camp) -> None:
        self._camp = camp
        self._seconds = list[float]()
        self._unanswered = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(0.5):
            start = time.perf_counter()
            try:
                self._camp._status()
            except Exception:
                self._unanswered += 1
            self._seconds.append(time.perf_counter() - start)

    @property
    def found(self) -> dict[str, float]:
        ordered = sorted(1e3 * value for value in self._seconds) or [0.0]
        return {
            "p50": ordered[len(ordered) // 2],
            "p99": ordered[int(0.99 * (len(ordered) - 1))],
            "asked": len(self._seconds),
            "unanswered": self._unanswered,
        }


if __name__ == "__main__":
    sys.exit(main())
