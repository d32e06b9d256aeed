"""Ranks for tests: real processes with a gloo group over this machine's loopback."""

import atexit
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.extent import patience

ROOT = Path(__file__).parents[2]
_launcher: subprocess.Popen[str] | None = None


def on_ranks(n: int, act: Callable[..., Any], folder: Path, *given: Any) -> list[Any]:
    """What `act(rank, *given)` returns on each of n ranks; an error there is one here."""
    store = folder / f"store-{len([*folder.iterdir()])}"
    _task(store).write_bytes(pickle.dumps((act, given)))
    codes = _launched(n, store)
    found = [
        pickle.loads(_answer(store, rank).read_bytes())
        if _answer(store, rank).exists()
        else (None, "nothing")
        for rank in range(n)
    ]
    errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(found) if error is not None]
    assert not errors, "\n".join(errors)
    assert codes == [0] * n
    return [answer for answer, _ in found]


def _task(store: Path) -> Path:
    return store.with_name(f"{store.name}-task")


def _answer(store: Path, rank: int) -> Path:
    return store.with_name(f"{store.name}-rank-{rank}")


def _launched(n: int, store: Path) -> list[int]:
    """The exit codes of ranks. They are forked from one program that has imported torch, for all tests."""
    global _launcher
    if _launcher is None:
        paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        words = [sys.executable, "-m", "tests.torch.ranks"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        _launcher = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **pipes)
        atexit.register(_end)
    print(json.dumps([n, str(store)]), file=_launcher.stdin, flush=True)
    ready, _, _ = select.select([_launcher.stdout], [], [], patience(120))
    line = _launcher.stdout.readline() if ready else ""
    if not line:
        _end()
        raise AssertionError("the ranks did not end in time, or their program has ended")
    return json.loads(line)


def _end() -> None:
    global _launcher
    if _launcher is not None:
        os.killpg(_launcher.pid, signal.SIGKILL)
        _launcher.communicate()
        _launcher = None


def _serve() -> None:
    """Fork ranks for each line that comes: their number, and where their task is."""
    import torch._dynamo  # noqa: F401 - DDP imports it, which takes a second

    for line in sys.stdin:
        n, store = json.loads(line)
        children = []
        for rank in range(n):
            child = os.fork()
            if child == 0:
                os._exit(_rank(rank, n, Path(store)))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


def _rank(rank: int, n: int, store: Path) -> int:
    answer, error = None, None
    try:
        os.dup2(2, 1)  # what tests print is no answer
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
        act, given = pickle.loads(_task(store).read_bytes())
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)
        answer = act(rank, *given)
    except BaseException:
        error = traceback.format_exc()
    _answer(store, rank).write_bytes(pickle.dumps((answer, error)))
    if error is not None:
        return 1
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    _serve()
