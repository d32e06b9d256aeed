"""Processes of attackers, which begin a storm and end it when they are told to."""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.extent import patience

ROOT = Path(__file__).parents[2]
LOW = 10
"""How nice attackers are: on one machine they would take the processor itself away."""


class Raiders:
    """Attackers in processes of their own, whose connections are shared out evenly.

    Args:
        processes: how many.
    """

    def __init__(self, processes=2):
        path = os.pathsep.join((str(ROOT), str(ROOT / "src")))
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": path},
            )
            for _ in range(processes)
        ]
        for process in self._processes:
            process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def begin(self, name, mark, connections):
        """Begin the storm of this name; returns when something of it has been sent."""
        share = max(1, connections // len(self._processes))
        order = {"name": name, "mark": asdict(mark), "connections": share}
        self._tell(json.dumps(order, default=str))
        for process in self._processes:
            process.stdout.readline()

    def end(self):
        """End it; what was sent, and what came back, by name."""
        self._tell("end")
        found = Counter()
        for process in self._processes:
            found.update(json.loads(process.stdout.readline()))
        return dict(found)

    def close(self):
        for process in self._processes:
            process.stdin.close()
            process.wait(patience(30))
            process.stdout.close()

    def _tell(self, text):
        for process in self._processes:
            process.stdin.write(f"{text}\n")
            process.stdin.flush()


async def attack(order, orders):
    """Storm until the next order; say when it has begun, and then what was done."""
    from tests.hostile.storms import Count, storm
    from tests.hostile.wire import Mark

    known, count = order["mark"], Count()
    known |= {"certs": Path(known["certs"]) if known["certs"] else None, "others": tuple(known["others"])}
    storming = asyncio.ensure_future(storm(order["name"], Mark(**known), order["connections"], count))
    loop = asyncio.get_running_loop()
    over = loop.run_in_executor(None, orders.readline)
    while not (count or over.done() or storming.done()):
        await asyncio.sleep(0.05)
    print("begun", flush=True)
    await asyncio.wait({over, storming}, return_when=asyncio.FIRST_COMPLETED)
    found = dict(count)
    storming.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await storming  # whatever else it raised is a mistake in an attack
    return found


def main():
    import tests.hostile.storms  # noqa: F401  takes seconds

    os.nice(LOW)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it says so when a connection has ended
    print("ready", flush=True)
    while text := sys.stdin.readline():
        print(json.dumps(asyncio.run(attack(json.loads(text), sys.stdin))), flush=True)


if __name__ == "__main__":
    main()
