"""`varangian.Server`: a server whose model, optimizer and evaluation are objects of a program."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from varangian.api import Config, read
from varangian.cli.main import CommandError
from varangian.cli.tokens import SECRET, secret
from varangian.cli.views.progress import progress
from varangian.config import RunConfig, advice
from varangian.config.checks.fragments import check_fragments
from varangian.config.checks.gate import check_gate
from varangian.files import user_path
from varangian.launch.checkpoints.resume import RunOver, find_run, settings_of, with_seed_of
from varangian.launch.checkpoints.resume import resume as go_on
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.event_loop import run_to_completion
from varangian.launch.identities import with_identity
from varangian.launch.output.run_result import RunResult
from varangian.launch.result import Note, RunError
from varangian.plugins import InputError, describe_error
from varangian.protos.identity.bundle import BundleError
from varangian.protos.identity.credentials import check_tls, choose, warn_without_tls
from varangian.registry import ConfigError, Problem
from varangian.server.identity.sessions import SECRET_BYTES, make_token
from varangian.server.identity.tls import Security
from varangian.server.observability.record import RoundRecord
from varangian.server.training.gate import Gate
from varangian.server.training.optimizers import OptimizerFactory, OwnOptimizer, SchedulerFactory
from varangian.serving.own_module import Evaluate, HeldOut, OwnModule
from varangian.serving.running import Running
from varangian.serving.settings import bind_settings, check_arguments, settings_from
from varangian.serving.work import Work
from varangian.worker.training.buffers.vector import BufferMode
from varangian.worker.training.device import as_in_a_new_thread

log = logging.getLogger("varangian")

Where = str | os.PathLike[str]


class Server:
    """The server of a run whose workers are programs of their own, as `varangian.connect` makes them.

        model = Net()
        server = varangian.Server(model, workers=8, f=2, rounds=1000, aggregator="nnm+trimmed_mean",
                                  optimizer={"name": "adamw", "lr": 1e-3}, evaluate=accuracy)
        result = server.serve("0.0.0.0:50051", certs="certs/server")
        safetensors.torch.save_model(model, "trained.safetensors")  # it has the final parameters

    Everything of `varangian server` holds: the run folder with its record, checkpoints and `resume`,
    `varangian status`, `report` and `audit`, the metrics port, changes of members. The module belongs to
    the server as long as it serves; where the run is over, or has failed, it has the last parameters.

    Args:
        model: the module whose parameters with `requires_grad` train, from the values that they have. The
            modules of workers need the same names and shapes. Parameters may have a narrower type than
            float32, in which the server keeps them.
        workers: how many there are, or their names.
        f: how many of them may be Byzantine.
        rounds: of the run.
        aggregator: as the setting, or an object of `varangian.aggregators`.
        optimizer: called with the parameters, in the order of `model.parameters()` and with their shapes,
            and returns any optimizer of `torch.optim` that needs no closure: `lambda ps:
            torch.optim.AdamW(ps, 1e-3)`. It sees tensors of the server's own, never those of the module.
            Or a name or a mapping, as the setting `optimizer`.
        schedule: called with that optimizer, and returns a scheduler of `torch.optim.lr_scheduler`, which
            is stepped once a round. Or a name or a mapping, as the setting `optimizer.schedule`.
        evaluate: called with the model, with the parameters of the round, in evaluation mode and without
            gradients, every `evaluate__every` rounds, after the last, and once before the first. Returns a
            number, or numbers by name, of which `loss` and `accuracy` have columns of their own. Should it
            fail later, the scores of the round are NaN and the run goes on.
        gate: called like `evaluate`, with the model as it is, and as the step of each worker alone would
            leave it. Returns the loss on data that no worker has; vectors that raise it take no part in
            the round, f of them at most. `server__gate` has what can be set, as {"tolerance": 0.01}.
        on_round: called with the record of each round (`RoundRecord`), in a thread of its own. Should it
            fail, the run goes on, and says so.
        buffers: what becomes of buffers, as the statistics of BatchNorm: "local", the default, leaves the
            workers theirs and this module its own; "robust" has workers send them along, and takes the
            median of each number; "refuse" raises an error for a module with BatchNorm.
        config: more settings, as for `varangian.run`: a file, a mapping or what `varangian.config.load`
            returns.
        secret: what tokens of workers are made with, where there are no certificates: 16 bytes or more. By
            default that of the environment (`VARANGIAN_SECRET`), or else a new one, which is gone with this
            object.
        settings: more of the run, which win: `server__deadline=30` for `server.deadline`,
            `worker__momentum=0` for what workers are told.

    Raises:
        ConfigError: with every problem found in the settings.
        RunError: the model or the secret cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        workers: int | Sequence[str] | None = None,
        f: int | None = None,
        rounds: int | None = None,
        aggregator: Any = None,
        optimizer: str | Mapping[str, Any] | OptimizerFactory | None = None,
        schedule: str | Mapping[str, Any] | SchedulerFactory | None = None,
        evaluate: Evaluate | None = None,
        gate: HeldOut | None = None,
        on_round: Callable[[RoundRecord], object] | None = None,
        buffers: BufferMode | None = None,
        config: Config = None,
        secret: str | bytes | None = None,
        **settings: Any,
    ) -> None:
        if evaluate is not None and not callable(evaluate):
            rule = "should be a function that is called with the model; how often it is, is evaluate__every"
            raise ConfigError([Problem("evaluate", rule, evaluate)])
        if gate is not None and not callable(gate):
            rule = "should be a function that is called with the model; what is set is in server__gate"
            raise ConfigError([Problem("gate", rule, gate)])
        if on_round is not None and not callable(on_round):
            raise ConfigError(
                [Problem("on_round", "should be a function that takes a RoundRecord", on_round)]
            )
        for path, value, of in (
            ("optimizer", optimizer, "parameters"),
            ("schedule", schedule, "optimizer"),
        ):
            if isinstance(value, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
                made = type(value).__name__
                rule = "should be a function that makes it, as the server steps tensors of its own"
                raise ConfigError(
                    [Problem(path, rule, made, f"Write `{path}=lambda {of}: {made}({of}, ...)`.")]
                )
        try:
            self._model = OwnModule(model, evaluate, gate)
        except InputError as error:
            raise RunError(str(error)) from error
        self._optimizer = optimizer if callable(optimizer) else None
        self._scheduler = schedule if callable(schedule) else None
        self._made: OwnOptimizer | None = None
        named = {"workers": workers, "f": f, "rounds": rounds, "aggregator": aggregator}
        named |= {} if callable(optimizer) else {"optimizer": optimizer}
        named |= {} if callable(schedule) else {"optimizer.schedule": schedule}
        named |= {"buffers": buffers}
        given = {name: value for name, value in named.items() if value is not None}
        self._base, self._given = config, {**given, **settings}
        self._gated = gate is not None
        self._on_round = on_round
        self._secret = _secret(secret)
        self._serving = threading.Lock()
        self._work_now: Work | None = None
        self._config = self._configured({}, config)

    @property
    def config(self) -> RunConfig:
        """All settings of the run, but for those that `serve` is given."""
        return self._config

    def token(self, name: str) -> str:
        """What a worker of this name shows where there are no certificates: `varangian.connect(token=...)`.

        It is also what `VARANGIAN_TOKEN` holds, or a line of the file that `VARANGIAN_TOKEN_FILE` names.
        Who has it can be that worker, and no other.

        Raises:
            ValueError: the run has no such worker.
        """
        if name not in self._config.worker_names:
            raise ValueError(f"`name` should be a worker of the run. Found {name!r}.")
        return f"{name}:{make_token(name, self._secret)}"

    def stop(self, reason: str = "stopped by the program") -> None:
        """End the run that is served after the round in hand, from any thread, as from `on_round`.

        Its workers hear the reason. It can go on later, with `resume`.
        """
        work = self._work_now
        if work is not None:
            work.stop(reason)

    def serve(
        self,
        address: str | None = None,
        *,
        certs: Where | None = None,
        insecure: bool = False,
        folder: Where | None = None,
        resume: Where | bool | None = None,
        force: bool = False,
        ready: Callable[[str], object] | None = None,
        note: Note | None = None,
        format: str | None = None,
    ) -> RunResult:
        """Serve the run to its workers, and return when it is over.

        Where an event loop runs already, as in a notebook, the run has one of its own in another thread,
        and this function waits for it. The first Ctrl-C ends the run after the round in hand, and workers
        wait for a server that goes on with it; in a thread that is not the main one no signal is handled.

        Args:
            address: `host:port` to listen at; port 0 is any free one. By default what the settings say,
                which is this machine alone.
            certs: the server's folder that `varangian certs` has made: connections are then over TLS.
                By default VARANGIAN_CERTS; without it workers show tokens.
            insecure: whether a network may be used without TLS, where whoever sees the traffic can be any
                worker.
            folder: the run folder, which is made and must be empty if it exists; by default a new one below
                the setting `output`.
            resume: go on with the run in this folder, whose settings stand in the place of those that are
                not given; True is the newest run with these settings below `output` that has rounds left,
                and a new one where there is none; False is as None. A run that is over is not carried on:
                its result is returned.
            force: with `resume`, as `--force`.
            ready: called with `host:port` when workers can connect.
            note: takes sentences about the run; by default they are logged as warnings of the logger
                `varangian`.
            format: shows progress as the command does: auto, rich, plain or json; by default nothing is
                printed.

        Raises:
            ConfigError: with every problem found in the settings.
            RunError: the run cannot be started, or cannot go on.
        """
        check_arguments(
            address,
            certs=certs,
            insecure=insecure,
            folder=folder,
            resume=resume,
            force=force,
            note=note,
            ready=ready,
            format=format,
        )
        try:
            work = self._work(address, certs, insecure, folder, resume, force, note)
        except _OverError as over:
            return read(over.folder)
        try:
            if ready is not None:
                work.when_ready(ready)
            if format is None:
                return run_to_completion(work.carry_out)
            with progress(format, work.config.rounds, (), declared=work.config.f) as shown:
                work.observe, work.note = shown.round, work.note if note else shown.note
                result = run_to_completion(work.carry_out)
            shown.finish(result)
            return result
        finally:
            work.release()

    def start(
        self,
        address: str | None = None,
        *,
        certs: Where | None = None,
        insecure: bool = False,
        folder: Where | None = None,
        resume: Where | bool | None = None,
        force: bool = False,
        note: Note | None = None,
    ) -> Running:
        """Serve the run in a thread, and return as soon as workers can connect.

            with server.start("127.0.0.1:0") as running:
                ...                                  # running.address, running.token("w00"), running.stop()
                result = running.result()

        Args:
            address: as for `serve`, and so are the others.
            certs: of the server.
            insecure: whether a network may be used without TLS.
            folder: the run folder.
            resume: go on with a run.
            force: with `resume`.
            note: takes sentences about the run.

        Raises:
            ConfigError: with every problem found in the settings.
            RunError: the run cannot be started, or cannot go on; or it has no rounds left.
        """
        check_arguments(
            address, certs=certs, insecure=insecure, folder=folder, resume=resume, force=force, note=note
        )
        work = self._work(address, certs, insecure, folder, resume, force, note)
        try:
            return Running(work, self.token)
        except BaseException:
            work.release()
            raise

    @as_in_a_new_thread()
    def _configured(self, more: Mapping[str, Any], base: Config) -> RunConfig:
        config = _with_gate(
            settings_from(base, {**self._given, **more}, self._model.name), given=self._gated
        )
        try:
            self._model.choose_buffers(config.buffers)
        except InputError as error:
            raise RunError(str(error)) from error
        if self._optimizer is None and self._scheduler is None:
            return config
        named, made = config.optimizer, self._made
        by_name = self._scheduler is None
        if made is None or (by_name and (made.schedule, made.warmup) != (named.schedule, named.warmup)):
            try:
                made = self._made = OwnOptimizer.of(
                    self._optimizer or named,
                    self._model.layout.trained.shapes,
                    scheduler=self._scheduler,
                    schedule=named.schedule if by_name else None,
                    warmup=named.warmup if by_name else 0,
                    rounds=config.rounds,
                )
            except InputError as error:
                raise RunError(str(error)) from error
        config = config.model_copy(update={"optimizer": made})
        if problems := [*check_fragments(config)]:
            raise ConfigError(problems)
        return config

    @as_in_a_new_thread()
    def _work(
        self,
        address: str | None,
        certs: Where | None,
        insecure: bool,
        folder: Where | None,
        resume: Where | bool | None,
        force: bool,
        note: Note | None,
    ) -> Work:
        if resume not in (None, False) and folder is not None:
            raise RunError(
                "`folder` is for a new run: one that goes on does so in its own folder. Found both, "
                f"folder={os.fspath(folder)!r} and resume={resume!r}; leave one out."
            )
        found = user_path(resume) if isinstance(resume, str | os.PathLike) else None
        base = self._base
        if found is not None and base is None:
            base = settings_of(found)
        bound = {} if address is None else bind_settings(address)
        config = self._configured(bound, base)
        chosen = choose(certs, insecure)
        check_tls(chosen, config.server.host, "certs", "pass insecure=True")
        identity = self._secret if chosen.certs is None else _security(chosen.certs)
        say = log.warning if note is None else _guarded(note)
        warn_without_tls(chosen, config.server.host)
        for sentence in advice(config):
            say(f"warning: {sentence}")
        if resume is True and (found := find_run(config)) is None:
            say(f"there is no run to resume in {config.output}; a new one begins")
        if found is not None:
            config = with_seed_of(config, settings_of(found))
        config = with_identity(config, chosen.certs is not None, "serve(certs=FOLDER)")
        if not self._serving.acquire(blocking=False):
            raise RunError("this server is at work: the module can be in one run at a time")
        resumed: Resumed | None = None
        try:
            if found is not None:
                config, resumed = go_on(config, found, say, force=force, at_end=True)
        except BaseException as error:
            self._serving.release()
            if found is not None and isinstance(error, RunOver):
                raise _OverError(found, str(error)) from error
            raise
        path = None if folder is None else user_path(folder)
        work = Work(config, self._model, identity, self._on_round, say, path, resumed, self._serving)
        self._work_now = work
        return work


def _guarded(note: Note) -> Note:
    """A function of the user that takes sentences; where it fails, they are logged."""

    def say(sentence: str) -> None:
        try:
            note(sentence)
        except Exception as error:
            log.warning("%s (`note` failed: %s)", sentence, describe_error(error))

    return say


class _OverError(RunError):
    """A run that is to go on, and has no rounds left."""

    def __init__(self, folder: Path, sentence: str) -> None:
        self.folder = folder
        super().__init__(sentence)


def _with_gate(config: RunConfig, *, given: bool) -> RunConfig:
    """The settings with a gate where a program has given a loss for it.

    Raises:
        ConfigError: there is no such loss for a gate, or the gate cannot be in this run.
    """
    if config.server.gate is not None and not given:
        rule = "needs a function of the program that returns a loss on held-out data"
        hint = "Write `varangian.Server(..., gate=function)`."
        raise ConfigError([Problem("server.gate", rule, hint=hint)])
    if config.server.gate is not None or not given:
        return config
    server = config.server.model_copy(update={"gate": Gate()})
    config = config.model_copy(update={"server": server})
    if problems := [*check_gate(config)]:
        raise ConfigError(problems)
    return config


def _security(path: Path) -> Security:
    try:
        return Security(path)
    except BundleError as error:
        raise RunError(str(error)) from error


def _secret(given: str | bytes | None) -> bytes:
    """The secret that tokens are made with.

    Raises:
        RunError: it is too short, or none.
    """
    if given is None and not {SECRET, f"{SECRET}_FILE"} & os.environ.keys():
        return secrets.token_bytes(32)
    if given is None:
        try:
            return secret()
        except CommandError as error:
            raise RunError(str(error)) from error
    if not isinstance(given, str | bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise RunError(f"`secret` should be a text or bytes. Found {type(given).__name__}.")
    key = given.encode() if isinstance(given, str) else given
    if len(key) < SECRET_BYTES:
        raise RunError(f"`secret` should have at least {SECRET_BYTES} bytes. Found {len(key)}.")
    return key
