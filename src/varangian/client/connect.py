"""`connect` and `connect_async`: from an address and a model to a worker."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from concurrent.futures import Future
from numbers import Real

from torch import nn

from varangian.client.async_worker import AsyncWorker, Connecting
from varangian.client.background import Background
from varangian.client.credentials import credentials, path_of
from varangian.client.exchange import Exchange, wait
from varangian.client.session import Session
from varangian.client.training.memory import MomentumMemory
from varangian.client.training.model import ModelVector
from varangian.client.worker import Worker
from varangian.protos.shared_settings import SharedSettings
from varangian.structured_logs import event
from varangian.worker.checkpoints.folders import state_folders
from varangian.worker.training.error_feedback import DeltaEncoder
from varangian.worker.transport.client import ClientError
from varangian.worker.transport.tls import Proof

log = logging.getLogger(__name__)

CONNECTED = weakref.WeakValueDictionary[tuple[str, str], Exchange]()
"""Workers of this process by server and name. A cell of a notebook that runs again connects again."""
OWN_LOOP = SharedSettings({"participation": "vectors"})
"""What a loop of the user's own has in common with the server: all that it computes is a vector, from which
deltas are made here for a server that wants them."""


def connect(
    server: str,
    model: nn.Module,
    *,
    certs: str | os.PathLike[str] | None = None,
    name: str | None = None,
    token: str | None = None,
    momentum: float | None = None,
    patience: float | None = None,
    state: str | os.PathLike[str] | None = None,
    insecure: bool = False,
) -> Worker:
    """Connect a training loop to a server as one of its workers.

    The parameters of the model that train now are the layout, and have to be those of the server's model.
    The worker is a context manager; without `with`, call its `close`. It works where an event loop runs
    already, as in a notebook.

    Args:
        server: `host:port`.
        model: the module that is trained; it may be compiled or wrapped by DataParallel, on any device.
        certs: the folder with the bundle of this worker, or with those of several, of which `name` is
            one; by default VARANGIAN_CERTS.
        name: of the worker; by default that on its certificate or before its token.
        token: proves the name where there is no TLS, as `varangian token` prints it; by default
            VARANGIAN_TOKEN, or the file that VARANGIAN_TOKEN_FILE names.
        momentum: worker momentum, from 0 to below 1; by default that of the server's settings.
        patience: seconds to wait for a server that cannot be reached; by default as long as it takes.
        state: the folder in which worker momentum is kept, so that it is the same after a crash; "auto" is
            $XDG_STATE_HOME/varangian, as ~/.local/state/varangian; by default it is kept in memory.
        insecure: show a token to another machine, without TLS, where anybody on the way can read it.

    Raises:
        ClientError: in one sentence: the server cannot be reached or does not take this worker, the
            model is another one than the server's, or an argument cannot be used.
    """
    opening = Opening(server, model, certs, name, token, momentum, state, insecure)
    try:
        return Worker(opening.worker(wait(opening.begin(patience))))
    except BaseException:
        opening.undo()
        raise


def connect_async(
    server: str,
    model: nn.Module,
    *,
    certs: str | os.PathLike[str] | None = None,
    name: str | None = None,
    token: str | None = None,
    momentum: float | None = None,
    patience: float | None = None,
    state: str | os.PathLike[str] | None = None,
    insecure: bool = False,
) -> Connecting:
    """As `connect`, for a program that runs on asyncio: `async with` it, or `await` it.

    Raises:
        ClientError: as `connect`, once it is awaited.
    """

    async def connecting() -> AsyncWorker:
        opening = Opening(server, model, certs, name, token, momentum, state, insecure)
        try:
            return AsyncWorker(opening.worker(await asyncio.wrap_future(opening.begin(patience))))
        except BaseException:
            opening.undo()
            raise

    return Connecting(connecting)


class Opening:
    """A worker that is being connected, and what it was asked to be.

    Raises:
        ClientError: an argument cannot be used.
    """

    def __init__(
        self,
        server: str,
        model: nn.Module,
        certs: str | os.PathLike[str] | None,
        name: str | None,
        token: str | None,
        momentum: float | None,
        state: str | os.PathLike[str] | None,
        insecure: bool,
    ) -> None:
        if momentum is not None and not (isinstance(momentum, Real) and 0 <= momentum < 1):
            raise ClientError(f"`momentum` should be a number from 0 to below 1. Found {momentum!r}.")
        self._server, self._momentum = server, momentum
        self._proof: Proof
        self._name, self._proof = credentials(server, certs, name, token, insecure)
        self._model = ModelVector(model)
        self._folders = state_folders(None if state is None else path_of("state", state))
        self._background = Background.shared()
        self._opened: Session | None = None

    def begin(self, patience: float | None) -> Future[Session]:
        """Begin to connect and join."""
        if patience is not None and not (isinstance(patience, Real) and patience > 0):
            raise ClientError(f"`patience` should be a number of seconds above 0. Found {patience!r}.")
        earlier = CONNECTED.get((self._server, self._name))
        closing = None if earlier is None else earlier.begin_close()
        if closing is not None:
            log.warning(
                "%s was connected to %s by this program before; that connection is closed",
                self._name,
                self._server,
                extra=event("connects_again", worker=self._name),
            )
        return self._background.submit(self._open(patience, closing))

    async def _open(self, patience: float | None, closing: Future[None] | None) -> Session:
        if closing is not None:
            await asyncio.wrap_future(closing)
        self._opened = await Session.open(
            self._server,
            self._name,
            self._proof,
            self._model.layout,
            with_buffers=self._model.with_buffers,
            common=OWN_LOOP.text,
            patience=patience,
        )
        return self._opened

    def undo(self) -> None:
        """Close what was opened for a program that was interrupted before it had it."""
        if self._opened is not None:
            self._background.submit(self._opened.close())

    def worker(self, session: Session) -> Exchange:
        """What both forms of a worker have in common."""
        beta = self._momentum
        if beta is None:
            beta = session.terms.momentum or 0.0
        deltas = DeltaEncoder(session.dtype) if session.deltas else None
        memory = MomentumMemory(self._name, beta, self._folders, deltas)
        exchange = Exchange(self._name, self._model, session, self._background, memory)
        CONNECTED[self._server, self._name] = exchange
        return exchange
