"""The module of a program as the model of a run: its layout, its evaluation and its state.

It has the parameters of the server only while it is evaluated or saved, and the final ones when the run is
over. What trains is decided when this is made.
"""

from __future__ import annotations

import math
import numbers
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from varangian.client.training.model import ModelVector, plain_name, unwrapped
from varangian.plugins import InputError, guard
from varangian.protos.layout import BUFFER, Layout
from varangian.protos.shared_settings import SharedSettings
from varangian.resources import peak_memory, resident_memory
from varangian.worker.seeds import globally_seeded
from varangian.worker.training.buffers.vector import BufferMode, ModelBuffers
from varangian.worker.training.metrics import MetricError, check_name
from varangian.worker.transport.client import ClientError

Evaluate: TypeAlias = Callable[[Any], Any]
"""From the module, with the parameters of the round and in evaluation mode, to a number or to numbers by
name."""
HeldOut: TypeAlias = Callable[[Any], Any]
"""As `Evaluate`, to one number: the loss on held-out data."""
SCORE = "score"
"""The name of a score that comes alone."""
MOST = 200
"""Scores of one evaluation."""
PUSHES = "A loop of the same release joins once more, and makes deltas of its vectors."
SHOWN = 4
"""Names in a sentence."""
GIVES = "should return a number, or a mapping of names to numbers as {'accuracy': 0.9, 'loss': 0.3}"


class OwnModule:
    """A module of a program as a `ModelSide`.

    Args:
        module: whose parameters train; in place of a wrapped one, as of `torch.compile`, what it wraps is
            laid out and saved.
        evaluate: a function of the user; None for a run without scores.
        gate: another one, which returns the loss on held-out data; None for a run without a gate.

    Raises:
        InputError: the module cannot be trained by a server.
    """

    def __init__(self, module: nn.Module, evaluate: Evaluate | None, gate: HeldOut | None = None) -> None:
        try:
            self._vector = ModelVector(module)
        except ClientError as error:
            raise InputError(str(error)) from None
        self._module, self._evaluate, self._gate = module, evaluate, gate
        self._inner = unwrapped(module)
        self._names: tuple[str, ...] | None = None
        self._bytes = 0
        self._lock = threading.RLock()
        self._travel = False
        self._told = set[str]()
        self.pushed = "vectors"
        """What workers push."""
        self.tell: Callable[[str], None] = lambda sentence: None
        """Takes a sentence about an evaluation that failed, once each; called from any thread."""

    def choose_buffers(self, mode: BufferMode) -> None:
        """Say what becomes of the buffers of the module.

        Raises:
            InputError: they are refused, and it has some that training changes; or cannot travel.
        """
        tracking = [
            name
            for name, part in self._inner.named_modules()
            if isinstance(part, _NormBase) and part.track_running_stats
        ]
        if mode == "refuse" and tracking:
            raise InputError(
                f"`model` should have no buffers that training changes. Found those of {tracking[0]!r}: "
                "choose buffers='robust' or 'local'."
            )
        self._travel = mode == "robust" and self._vector.with_buffers is not None
        if mode == "robust" and not self._travel and [*self._inner.buffers()]:
            ModelBuffers(self._inner)  # says why
        self._vector.carries = self._travel

    @property
    def layout(self) -> Layout:
        found = self._vector.with_buffers if self._travel else None
        return self._vector.layout if found is None else found

    @property
    def state_names(self) -> tuple[str, ...]:
        """Those of the layout are without the names of compiled parts."""
        named = [*self._inner.named_parameters(), *self._inner.named_buffers()]
        known = {plain_name(name): name for name, _ in named}
        return tuple(known[name.removeprefix(BUFFER)] for name, _ in self.layout.entries)

    @property
    def name(self) -> str:
        """The class of the module."""
        return type(self._inner).__name__

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(name for name in self._names or () if name != "loss")

    @property
    def common(self) -> SharedSettings:
        """What workers push: the rest is in their programs alone."""
        return SharedSettings({"participation": self.pushed}, {"participation": PUSHES})

    @property
    def classes(self) -> None:
        return None

    @property
    def recipe(self) -> Mapping[str, str]:
        return {}

    @property
    def evaluation_bytes(self) -> int:
        """Measured at `rehearse`, of memory that was given back after it."""
        return self._bytes

    @property
    def state_bytes(self) -> int:
        state = self._inner.state_dict().values()
        return sum(value.nbytes for value in state if isinstance(value, Tensor))

    def initial(self) -> Tensor:
        with self._lock, torch.no_grad():
            parts = [p.detach().reshape(-1).to("cpu", torch.float32) for p in self._vector.parameters]
            if self._travel:
                parts.append(self._vector.own_buffers.read().cpu())
            return torch.cat(parts)

    def rehearse(self, parameters: Tensor) -> dict[str, str]:
        """Evaluate once: from then on the names of the scores are known.

        Raises:
            InputError: the evaluation fails, or returns something else than scores.
        """
        before = peak_memory()
        self._names = tuple(self._scores(parameters))
        after = peak_memory()
        self._bytes = max(0, after - resident_memory()) if after > before else 0
        return {}

    def evaluate(self, parameters: Tensor) -> dict[str, float]:
        """The scores of these parameters; NaN where the function fails, which is told once."""
        known = self._names or ()
        try:
            found = self._scores(parameters)
        except InputError as error:
            self._tell(str(error))
            return dict.fromkeys(known, math.nan)
        if unknown := [name for name in found if name not in known]:
            self._tell(
                "`evaluate` should return the same names as before the first round. Found also "
                f"{', '.join(unknown[:SHOWN])}."
            )
        return {name: found.get(name, math.nan) for name in known}

    def training_loss(self, parameters: Tensor) -> None:
        """None: the server of a program has no training samples."""
        del parameters

    def held_out_loss(self, parameters: Tensor, seed: int, round: int, batch: int) -> float:
        """What the function of the user returns; torch's own generator starts alike for all of a round.

        Raises:
            InputError: it fails, or returns no number.
        """
        del batch
        if self._gate is None:
            raise InputError("`gate` should be a function that returns a loss. Found none.")
        device = next(iter(self._vector.parameters)).device
        seeded = globally_seeded(seed, "gate", round, device=device)
        with self._lock, _as_it_was(self._module), torch.no_grad(), seeded:
            self._vector.take(parameters)
            self._module.eval()
            with guard("`gate`", "It is called with the model, in evaluation mode."):
                found = _number(self._gate(self._module), "", "`gate` should return a number, the loss")
                self._check_kept("`gate`")
                return found

    @contextmanager
    def model_state(self, parameters: Tensor) -> Generator[dict[str, Any]]:
        with self._lock:
            self._vector.take(parameters)
            state = self._inner.state_dict()
            yield {
                name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()
            }

    def load(self, parameters: Tensor) -> None:
        """Put parameters (d,) into the module."""
        with self._lock:
            self._vector.take(parameters)

    def _scores(self, parameters: Tensor) -> dict[str, float]:
        """What the function of the user returns, as numbers by name.

        Raises:
            InputError: it fails, or returns something else.
        """
        if self._evaluate is None:
            return {}
        with self._lock, _as_it_was(self._module), torch.no_grad():
            self._vector.take(parameters)
            self._module.eval()
            with guard("`evaluate`", "It is called with the model, in evaluation mode."):
                found = dict(_numbers(self._evaluate(self._module)))
                self._check_kept()
                return found

    def _check_kept(self, what: str = "`evaluate`") -> None:
        """See that the module has the parameters that it had, which the server fills.

        Raises:
            InputError: it has others.
        """
        there = {id(parameter) for parameter in self._inner.parameters()}
        if not all(id(parameter) in there for parameter in self._vector.parameters):
            raise InputError(
                f"{what} should leave the parameters of the model in their places. Found others after "
                "it. Change a copy, as copy.deepcopy(model)."
            )

    def _tell(self, sentence: str) -> None:
        """Each sentence once."""
        if sentence not in self._told and len(self._told) < MOST:
            self._told.add(sentence)
            self.tell(f"an evaluation failed, and the run goes on: {sentence}")


@contextmanager
def _as_it_was(module: nn.Module) -> Generator[None]:
    """Put each part of a module back into the mode that it is in."""
    before = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _numbers(found: Any) -> Iterator[tuple[str, float]]:
    """The scores in what a function of the user has returned.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(found, Mapping):
        yield SCORE, _number(found, "")
        return
    entries = found
    if len(entries) > MOST:
        raise InputError(f"`evaluate` should return at most {MOST} scores. Found {len(entries)}.")
    for name, value in entries.items():
        if not isinstance(name, str):
            raise InputError(f"`evaluate` {GIVES}. Found the name {name!r:.100}.")
        if name not in ("loss", "accuracy"):
            try:
                check_name(name)
            except MetricError:
                rule = "`evaluate` should give scores names of their own, that can be printed"
                raise InputError(f"{rule}. Found {name!r:.100}.") from None
        yield name, _number(value, f" for {name!r:.100}")


def _number(value: Any, of: str, rule: str = f"`evaluate` {GIVES}") -> float:
    """A number of Python, numpy or torch as a float.

    Raises:
        InputError: it is none.
    """
    one = callable(getattr(value, "item", None)) and getattr(value, "size", None) is not None
    plain = value.item() if one and math.prod(getattr(value, "shape", ())) == 1 else value
    if not isinstance(plain, numbers.Real):
        raise InputError(f"{rule}. Found {type(value).__name__}{of}.")
    return float(plain)
