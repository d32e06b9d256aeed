"""A server in a thread of its own, as `serve` runs it, for workers of the Python client."""

import asyncio
import contextlib
import threading
from dataclasses import replace

import torch
from tests.extent import patience
from torch import nn

from varangian.aggregators import Aggregator
from varangian.aggregators.rules.mean import Mean
from varangian.client.connect import connect
from varangian.client.training.model import ModelVector
from varangian.protos.contract import Terms
from varangian.protos.layout import Fragments
from varangian.server.app import serve
from varangian.server.identity.sessions import Sessions
from varangian.server.limits.limits import Limits
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.rows.fragments import Fragmented
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

SECRET = b"0123456789abcdef"
TERMS = Terms(momentum=0.0, deadline=60.0)


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Rig:
    """A server that takes steps of a mean by plain SGD; its rows are kept by round and worker."""

    def __init__(
        self,
        layout,
        names=("w00",),
        *,
        rounds=3,
        rule=None,
        terms=TERMS,
        lr=1.0,
        security=None,
        first=0,
        fragments=None,
        **options,
    ):
        self.names, self.rows, self.records = names, {}, []
        policy = {"quorum": len(names), "deadline": 60.0, "shortfall": "wait"}
        policy |= {key: options.pop(key) for key in policy if key in options}
        aggregator = Aggregator(rule or Mean(), f=0)
        self.split = None if fragments is None else Fragments(layout, fragments)
        self.learner = Learner(
            torch.zeros(layout.numel), aggregator, Sgd(lr=lr), rounds=rounds, seed=1, fragments=self.split
        )
        terms = terms if fragments is None else replace(terms, fragments=fragments)
        step = self.learner.step

        def noted(round, rows, faults, **more):
            self.rows[round] = {name: row.clone() for name, row in rows.items()}
            return step(round, rows, faults, **more)

        self.learner.step = noted
        self.machine = Machine(RunPolicy(names, rounds, f=0, **policy, selection=Everyone()))
        self.machine.state = self.machine.state.replace(round=first, first=first)
        self.layout, self.terms, self.security, self.options = layout, terms, security, options
        reader = None if security is None else security.certificate_reader
        self.sessions = Sessions(
            names, None if security else SECRET, timeout=0.05, certificate_reader=reader
        )
        self.address = ""

    def token(self, name="w00"):
        return self.sessions.token(name)

    def connect(self, module, name="w00", **options):
        options = {"name": name} | options
        if "token" not in options and "certs" not in options:
            options["token"] = self.token(name)
        return connect(self.address, module, **options)

    async def run(self, ready):
        self.stop = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.coordinator = Coordinator(
            self.machine,
            self.learner,
            evaluate=lambda _: (0.0, 0.0),
            evaluate_every=1000,
            observe=self.records.append,
            row_source=None if self.split is None else Fragmented(self.split),
        )

        def listening(address):
            self.address = address
            ready.set()

        limits = Limits(idle=20.0, status=0.0, grace=20.0, restart=0.0)
        # A server that returns stops at once, in the middle of its run.
        options = {"run_id": "run-1", "limits": limits, "returns": True} | self.options
        await serve(
            self.coordinator,
            self.sessions,
            self.layout,
            host="127.0.0.1",
            port=options.pop("port", 0),
            ready=listening,
            stop=self.stop,
            terms=self.terms,
            security=self.security,
            **options,
        )


@contextlib.contextmanager
def serving(module=None, *names, layout=None, **options):
    """A rig whose server runs until the end of the block."""
    layout = layout or ModelVector(module if module is not None else model()).layout
    rig, ready = Rig(layout, names or ("w00",), **options), threading.Event()
    failed = []

    def run():
        torch.set_num_threads(1)
        try:
            asyncio.run(rig.run(ready))
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    assert ready.wait(patience(20))
    try:
        assert not failed, failed
        yield rig
    finally:
        with contextlib.suppress(RuntimeError):
            rig.loop.call_soon_threadsafe(rig.stop.set)
        thread.join(patience(20))
    assert not failed, failed
    assert not thread.is_alive()


def flat_gradient(module):
    """What the gradients of a model are as a vector, by other means than those of the client."""
    return nn.utils.parameters_to_vector(
        [p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]
    )
