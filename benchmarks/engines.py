"""One run on every engine that is here: the digest of its parameters, and how long it takes.

    python benchmarks/engines.py --times 3 --json benchmarks/results/engines-HARDWARE.json

The run is `benchmarks/engines.yaml`, or the file that is named. It is carried out by `varangian run` in
processes, and with the files that `varangian deploy` writes for Compose, Swarm, Slurm and Kubernetes, by
their own commands: by turns, since other programs may share the machine. An engine that is not here is left
out, with the reason. `docker` must answer, and have the image; a Slurm cluster that does not answer is
started by `.ci/slurm`, and in the place of a Kubernetes that does not, `.ci/kubernetes` starts the cluster
of the tests, which carries out the pods of the manifests as processes in namespaces of their own.

The seconds are those from the command that starts the run to its end, with credentials, without the writing
of the files of the deployment, and, as the server says, those of its rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from varangian.bench.machine import load, machine  # noqa: E402

VARANGIAN = [sys.executable, "-m", "varangian"]
PATIENCE = 300.0
"""Seconds for one run."""
EACH = 0.25
"""Seconds between two questions whether it has ended."""

Once: TypeAlias = Callable[[Path], tuple[float, str]]
"""Carries the run out in the folder of its deployment; when it ended, and what its server has printed."""


class NotHereError(Exception):
    """An engine that cannot be had, with the reason."""


def said(*command: str | Path, **options: Any) -> str:
    """What a program prints.

    Raises:
        RuntimeError: it fails.
    """
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}: {done.stderr[-2000:] or done.stdout[-2000:]}")
    return str(done.stdout).strip()


def answers(*command: str) -> bool:
    """Whether a program is there and ends well."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def until(ended: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + PATIENCE
    while not ended():
        if time.monotonic() > limit:
            raise RuntimeError(f"{what} still runs after {PATIENCE:g} s")
        time.sleep(EACH)


def deploy(engine: str, folder: Path, image: str | None = None) -> None:
    words = ["deploy", engine, f"{folder.name}.yaml", "-o", str(folder)]
    said(*VARANGIAN, *words, *(() if image is None else ("--image", image)), cwd=folder.parent)


# Engines: each yields what carries a run out, and the words for its version, and puts away what it started


@contextlib.contextmanager
def processes(image: str) -> Iterator[tuple[Once, str]]:
    del image

    def once(folder: Path) -> tuple[float, str]:
        words = [f"{folder.name}.yaml", "backend=processes", "--format", "plain"]
        lines = said(*VARANGIAN, "run", *words, f"output={folder / 'runs'}", cwd=folder.parent)
        return time.monotonic(), lines

    yield once, f"Python {sys.version.split()[0]}"


def docker(image: str) -> str:
    if not answers("docker", "info"):
        raise NotHereError("no container engine answers")
    if not answers("docker", "image", "inspect", image):
        raise NotHereError(f"the engine has no image {image}: docker build -t {image} .")
    return "Engine " + said("docker", "version", "--format", "{{.Server.Version}}")


@contextlib.contextmanager
def compose(image: str) -> Iterator[tuple[Once, str]]:
    engine = docker(image)
    if answers("docker", "compose", "version"):
        program = ["docker", "compose"]
    elif answers("docker-compose", "version"):
        program = ["docker-compose"]
    else:
        raise NotHereError("there is neither `docker compose` nor `docker-compose`")

    def once(folder: Path) -> tuple[float, str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        project = f"varangian-engines-{secrets.token_hex(3)}"
        options = {
            "cwd": folder,
            "env": os.environ | {"PORT": "0", "DATA_PORT": port, "COMPOSE_PROJECT_NAME": project},
        }
        with_attack = [*program, "--profile", "attack"]
        try:
            said(*with_attack, "up", "--detach", **options)
            server = said(*program, "ps", "--quiet", "server", **options)
            said("docker", "wait", server, timeout=PATIENCE)
            return time.monotonic(), said("docker", "logs", server)
        finally:
            said(*with_attack, "down", "--volumes", "--timeout", "5", **options)

    yield once, f"Compose {said(*program, 'version', '--short')} on {engine}"


@contextlib.contextmanager
def swarm(image: str) -> Iterator[tuple[Once, str]]:
    engine = docker(image)
    if said("docker", "info", "--format", "{{.Swarm.LocalNodeState}}") != "inactive":
        raise NotHereError("the engine is part of a swarm already, which belongs to somebody else")
    said("docker", "swarm", "init", "--advertise-addr", "127.0.0.1")
    said(
        "docker",
        "node",
        "update",
        "--label-add",
        "varangian=server",
        said("docker", "node", "ls", "--quiet"),
    )
    stack = f"varangian-engines-{secrets.token_hex(3)}"

    def over() -> bool:
        tasks = said("docker", "stack", "ps", stack, "--format", "{{.Name}} {{.CurrentState}}")
        return re.search(rf"^{stack}_server\.1 Complete", tasks, re.MULTILINE) is not None

    def once(folder: Path) -> tuple[float, str]:
        try:
            said(*VARANGIAN, "certs", "cluster", "certs", "run.yaml", "--hosts", "server", cwd=folder)
            options = ("--resolve-image", "never", "--compose-file", "stack.yaml")
            said("docker", "stack", "deploy", *options, stack, cwd=folder)
            until(over, "the stack")
            ended = time.monotonic()
            # Its last lines may come after the news that it has ended.
            until(lambda: "digest" in log_of(stack), "the log of the server")
            return ended, log_of(stack)
        finally:
            said("docker", "stack", "rm", stack)
            selected = ("--quiet", "--filter", f"label=com.docker.stack.namespace={stack}")
            until(lambda: not said("docker", "ps", "--all", *selected), "a container of the stack")
            if names := said("docker", "volume", "ls", *selected).split():
                said("docker", "volume", "rm", *names)

    try:
        yield once, f"Swarm of one node on {engine}"
    finally:
        said("docker", "swarm", "leave", "--force")


def log_of(stack: str) -> str:
    return said("docker", "service", "logs", "--raw", f"{stack}_server")


@contextlib.contextmanager
def slurm(image: str) -> Iterator[tuple[Once, str]]:
    del image
    started = False
    if not answers("sinfo", "--noheader"):
        os.environ["SLURM_CONF"] = start(".ci/slurm", CORES="8")
        started = True

    def once(folder: Path) -> tuple[float, str]:
        job = said("sbatch", "--parsable", "job.sh", cwd=folder)

        def state() -> str:
            return said("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

        try:
            until(lambda: state() not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"), "the job")
        except RuntimeError as error:
            said("scancel", job)
            logs = "".join(path.read_text()[-1000:] for path in sorted((folder / "logs").glob("*.log")))
            raise RuntimeError(f"{error}: {logs}") from error
        ended, lines = time.monotonic(), (folder / "logs/server.log").read_text()
        if state() != "COMPLETED":
            raise RuntimeError(f"the job is {state()}: {lines[-2000:]}")
        return ended, lines

    try:
        yield once, said("sinfo", "--version").replace("slurm-wlm", "Slurm")
    finally:
        if started:
            subprocess.run([ROOT / ".ci/slurm", "down"], check=False)


@contextlib.contextmanager
def kubernetes(image: str) -> Iterator[tuple[Once, str]]:
    del image
    version, started = "", False
    if answers("kubectl", "version", "--request-timeout=5s"):
        version = said("kubectl", "version", "--output=json")
        version = "Kubernetes " + json.loads(version)["serverVersion"]["gitVersion"]
    else:
        for line in start(".ci/kubernetes").splitlines():
            name, _, value = line.partition("=")
            os.environ[name] = value
        version, started = "the cluster of the tests", True

    def ended(server: str) -> bool:
        status = json.loads(said("kubectl", "get", "job", server, "-o", "json")).get("status", {})
        return any(one["type"] in ("Complete", "Failed") for one in status.get("conditions") or [])

    def once(folder: Path) -> tuple[float, str]:
        server = f"{folder.name}-server"
        try:
            words = ["base/credentials", "base/run.yaml", "--hosts", server]
            said(*VARANGIAN, "certs", "cluster", *words, cwd=folder)
            said("kubectl", "apply", "-k", "base", cwd=folder)
            until(lambda: ended(server), "the Job of the server")
            return time.monotonic(), said("kubectl", "logs", f"job/{server}")
        finally:
            said("kubectl", "delete", "-k", "base", cwd=folder)

    try:
        yield once, version
    finally:
        if started:
            subprocess.run([ROOT / ".ci/kubernetes", "down"], check=False)


ENGINES = {
    "processes": processes,
    "compose": compose,
    "swarm": swarm,
    "slurm": slurm,
    "kubernetes": kubernetes,
}


def start(script: str, **environment: str) -> str:
    """Start a cluster for this; what its script prints.

    Raises:
        NotHereError: it cannot be had, with the reason.
    """
    done = subprocess.run(
        [ROOT / script, "up"], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    if done.returncode:
        raise NotHereError((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout.strip()


# Measuring


def last(lines: str, name: str) -> str:
    """The last value of a name in what a server prints at the end."""
    found = re.findall(rf"(?:^|\s){name}\s+(\S+)\s*$", lines, re.MULTILINE)
    if not found:
        raise RuntimeError(f"the server has printed no {name}: {lines[-2000:]}")
    return str(found[-1])


def measure(once: Once, engine: str, home: Path, image: str) -> dict[str, Any]:
    # Names are new each time: what an engine still has of the last one is nothing to go on with.
    folder = home / f"{engine}-{secrets.token_hex(3)}"
    folder.mkdir()
    shutil.copy(home / "run.yaml", home / f"{folder.name}.yaml")
    if engine != "processes":
        deploy(engine, folder, image if engine != "slurm" else None)
    began = time.monotonic()
    ended, lines = once(folder)
    rounds = float(last(lines, "seconds"))
    return {"digest": last(lines, "digest"), "seconds": ended - began, "rounds_s": rounds}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).with_suffix(".yaml")
    parser.add_argument("run", nargs="?", type=Path, default=here, help="by default engines.yaml")
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES], default=[*ENGINES])
    parser.add_argument("--times", type=int, default=1, help="of each; by default 1")
    parser.add_argument("--image", default="varangian", help="of containers; by default varangian")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    os.environ |= {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT / "src")}
    at_start = load()
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        home.chmod(0o755)  # containers read the settings as a user of theirs
        shutil.copy(asked.run, home / "run.yaml")
        here: dict[str, Once] = {}
        for engine in asked.engines:
            try:
                here[engine], version = stack.enter_context(ENGINES[engine](asked.image))
                found[engine] = {"version": version, "times": []}
            except NotHereError as reason:
                found[engine] = {"not_here": str(reason)}
                print(f"{engine:<11} not here: {reason}", flush=True)
        for _ in range(asked.times):
            for engine, once in here.items():
                one = measure(once, engine, home, asked.image)
                found[engine]["times"].append(one)
                numbers = f"{one['seconds']:6.1f} s, rounds {one['rounds_s']:6.1f} s"
                print(f"{engine:<11} {one['digest']}  {numbers}", flush=True)
    digests = {one["digest"] for engine in here for one in found[engine]["times"]}
    for engine in here:
        times = found[engine]["times"]
        found[engine]["median_s"] = statistics.median(one["seconds"] for one in times)
        found[engine]["median_rounds_s"] = statistics.median(one["rounds_s"] for one in times)
    print("the digests are the same" if len(digests) == 1 else f"{len(digests)} digests")
    if asked.json is not None:
        content = {
            "machine": machine(),
            "load_at_start": at_start,
            "load_at_end": load(),
            "run": asked.run.read_text(),
            "same_digest": len(digests) == 1,
            "engines": found,
        }
        asked.json.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(0 if len(digests) == 1 else 1)


if __name__ == "__main__":
    main()
