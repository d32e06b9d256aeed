"""A program in a mount namespace of its own: workers whose server moves to another address of its name.

Its argument is a file, which takes the place of /etc/hosts.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

from tests.ports import free_port
from tests.wire import kit
from tests.wire.relay import NEAR

from varangian.protos.contract import Terms

NAME, THERE = "server.varangian.test", "127.0.0.3"


def name_is_at(hosts: Path, address: str) -> None:
    hosts.write_text(f"127.0.0.1 localhost\n{address} {NAME}\n")


async def main(hosts: Path) -> None:
    port = free_port()
    first = kit.Run(rounds=1000, returns=True)
    second = kit.Run(rounds=3, terms=Terms(epoch=1))
    name_is_at(hosts, NEAR)
    async with first.served(port):
        workers = asyncio.create_task(kit.all_worked(first, f"{NAME}:{port}"))
        while len(first.records) < 2:
            await asyncio.sleep(0.01)
        first.stop.set()
        await first.ended
    name_is_at(hosts, THERE)
    kit.NEAR = THERE
    async with second.served(port):
        print(sorted(set(await workers)))
    print([record.missing for record in second.records])


if __name__ == "__main__":
    subprocess.run(["mount", "--bind", sys.argv[1], "/etc/hosts"], check=True)
    asyncio.run(main(Path("/etc/hosts")))
