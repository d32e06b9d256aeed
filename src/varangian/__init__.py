"""Varangian: a Byzantine-robust parameter server for PyTorch.

`varangian.run(config, rounds=50)` trains as a configuration says, `varangian.sweep(grid)` runs every point
of a grid, `varangian.read(folder)` gives the result of a run back and `varangian.load(folder)` its model;
`varangian.report(...)` writes a page about them, and `varangian.advise(f=3)` says which rule to use.
`varangian.connect(server, model)` makes a training loop of your own a worker of a server, and
`varangian.Server(model, workers=8)` a module of your own the model of one.
Nothing heavy is imported before it is asked for.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varangian.api import advise as advise
    from varangian.api import read as read
    from varangian.api import report as report
    from varangian.api import run as run
    from varangian.api import sweep as sweep
    from varangian.client.async_worker import AsyncWorker as AsyncWorker
    from varangian.client.connect import connect as connect
    from varangian.client.connect import connect_async as connect_async
    from varangian.client.outcome import Outcome as Outcome
    from varangian.client.outer import Outer as Outer
    from varangian.client.outer import outer as outer
    from varangian.client.worker import Worker as Worker
    from varangian.launch.output.saved_model import load as load
    from varangian.serving.server import Server as Server
    from varangian.worker.transport.client import ClientError as ClientError

__version__ = "0.1.0"

# gRPC reads it when it is imported. A DataLoader forks the programs of users; with gRPC's own support for
# forks its threads would begin anew in each fork, take events of the connections from the program that has
# them, and abort. A fork of a program with connections cannot use gRPC in any case.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_LAZY = {
    **dict.fromkeys(("run", "sweep", "read", "report", "advise"), "varangian.api"),
    **dict.fromkeys(("connect", "connect_async"), "varangian.client.connect"),
    "Worker": "varangian.client.worker",
    "AsyncWorker": "varangian.client.async_worker",
    "Outcome": "varangian.client.outcome",
    **dict.fromkeys(("outer", "Outer"), "varangian.client.outer"),
    "ClientError": "varangian.worker.transport.client",
    "load": "varangian.launch.output.saved_model",
    "Server": "varangian.serving.server",
}
"""Names that are imported on first use, and the module of each."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY} - {"Any", "TYPE_CHECKING", "importlib", "os"})
