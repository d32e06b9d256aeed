"""The trainer: gradients and held-out scores of a model on a data set, for given parameters."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from varangian.plugins import InputError, guard, target_name
from varangian.protos.layout import Layout, LayoutError
from varangian.structured_logs import event
from varangian.worker.data import Dataset
from varangian.worker.data.base import format_shape
from varangian.worker.data.samples import Samples, count, map_tensors, shapes
from varangian.worker.seeds import generator, globally_seeded
from varangian.worker.training.buffers.vector import BufferMode, ModelBuffers
from varangian.worker.training.device import MemoryFootprint
from varangian.worker.training.flat import (
    ModelError,
    check_memory_apart,
    check_model,
    fill,
    join,
    layout_of,
    trainable,
)
from varangian.worker.training.losses import CrossEntropy, Loss, LossError, by_place, is_built_in_loss
from varangian.worker.training.losses import name_of as name_of_loss
from varangian.worker.training.metrics import (
    Accuracy,
    Evaluated,
    Metric,
    MetricError,
    OnChangedInputs,
    Totals,
    added,
    check_name,
    value_name,
)
from varangian.worker.training.models import MODELS, Model

log = logging.getLogger(__name__)

EVALUATION_BATCH = 1000
"""Samples that are evaluated at once, or fewer where they would take more memory than is meant for it."""
EVALUATION_BYTES = 128 << 20
"""Bytes of activations in an evaluation, however large the model; more only for a single sample."""
WORKSPACE = 2
"""A factor for what libraries take while they compute, as inputs and outputs in another layout."""
TRAINING_SAMPLES = 1000
"""Samples of which the training loss is computed."""
NO_GRADIENT = "See that the loss is computed from the parameters, by operations that torch can derive."
VALIDATION = "validation_"
"""Before the name of a score on validation samples."""
TRIAL = 2
"""Samples with which a model is tried before a run."""
SHOWN = 4
"""Most names in a message."""


@dataclass(frozen=True)
class Objective:
    """The objective: the loss that is minimised, and the metrics reported beside it."""

    loss: Loss = field(default_factory=CrossEntropy)
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"accuracy": Accuracy()})
    """By name."""
    asked: bool = True
    """Whether the metrics were asked for; otherwise they are left out where the model gives no tensor."""


class Trainer:
    """A trainer: keeps no state between calls but the memory of the model.

    Args:
        model: what to build.
        dataset: what to train on.
        objective: loss and metrics.
        seed: of the run.
        device: where to compute; vectors that come and go are on the CPU.
        buffers: whether the model may have buffers that training changes. Unless they are refused they are
            the end of each vector that comes and goes: (d + b,) in place of (d,).

    Raises:
        InputError: when the model cannot be built, or a first gradient cannot be computed.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        objective: Objective,
        seed: int,
        device: torch.device,
        buffers: BufferMode = "refuse",
    ) -> None:
        self._dataset = dataset
        self.objective = objective
        self._seed = seed
        self.device = device
        self._target = str(getattr(model, "target", ""))
        self._name = describe_model(model)
        self._numeric = is_built_in(model)
        self._draws = not (self._numeric and is_built_in_loss(objective.loss))
        """Whether the model or the loss may draw random numbers: those here do not."""
        self._holding = False
        self._filled: Tensor | None = None
        """The parameters that the model has, while they are held."""
        self._told = set[str]()
        self._columns: tuple[str, ...] | None = None
        module = build_model(model, dataset, seed)
        with guard(f"{self._name}: moving it to {device}", "Choose another `worker.device`."):
            self._module = module.to(device)
        self._weights = [p for _, p in trainable(self._module)]
        found = ModelBuffers(self._module) if buffers != "refuse" else None
        self.buffers = found if found is not None and found.numel else None
        """The buffers of the model, where they are part of vectors."""
        self.initial_buffers = (
            torch.empty(0, dtype=torch.float32) if self.buffers is None else self.buffers.read().cpu()
        )
        """(b,), as the model is made with."""
        try:
            self.layout: Layout = layout_of(self._module)
            if self.buffers is not None and buffers == "robust":
                self.layout = Layout((*self.layout.entries, *self.buffers.entries))
        except LayoutError as error:
            raise ModelError(f"{self._name} cannot be sent: {error}") from error
        self._try()

    def _try(self) -> None:
        """A first gradient, of two samples."""
        x, y = self.batch(torch.arange(min(TRIAL, self._dataset.size)))
        with globally_seeded(self._seed, "trial", device=self.device):
            if self.buffers is None:
                check_model(self._module, lambda: self._scored(self._outputs(x), y))
            else:
                self.train()
                with torch.no_grad():
                    self._scored(self._outputs(x), y)
            self._slopes(x, y)
            if [id(p) for _, p in trainable(self._module)] != [id(p) for p in self._weights]:
                raise ModelError(
                    f"{self._name} should keep its parameters. Found others after a first pass. Make all "
                    "of them in __init__, and change their values in place."
                )

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics besides the loss, by name."""
        return self.objective.metrics

    def _scored(self, outputs: Any, y: Any) -> None:
        """See that there is a score for each class; a sequence model may have more, for tokens not seen."""
        if not self.objective.asked and not isinstance(outputs, Tensor):
            self.objective = replace(self.objective, metrics={})
        classes = self._dataset.classes
        if not isinstance(self.objective.loss, CrossEntropy) or classes is None:
            return
        scores, _ = by_place(outputs, y)
        if scores.shape[1] < classes or (y.dim() == 1 and scores.shape[1] > classes):
            shape, found = [*y.shape, classes], list(outputs.shape)
            raise ModelError(
                f"{self._name} should return scores of shape {shape}, one for each class. Found {found}."
            )

    def keep_data_on_device(self) -> None:
        """Copy all samples to the device, so that no batch has to be."""
        self._dataset = self._dataset.on(self.device)

    def batch(self, indices: Tensor) -> tuple[Any, Any]:
        """Training samples as the model takes them, and their targets, on the device."""
        data = self._dataset
        x, y = (
            map_tensors(part, lambda t: t.index_select(0, indices.to(t.device)))
            for part in (data.train_x, data.train_y)
        )
        return data.prepared(x, self.device), map_tensors(y, lambda t: t.to(self.device))

    def gradient(self, parameters: Tensor, x: Any, y: Any, *purpose: str | int) -> Tensor:
        """The gradient of the mean loss, (d,) on the CPU; dropout draws from the stream `purpose`.

        Raises:
            InputError: when the model or the loss fails for this batch.
        """
        return join(self._gradients(parameters, x, y, purpose) + self._left()).cpu()

    @contextmanager
    def holding(self) -> Generator[None]:
        """The caller changes no parameters in place meanwhile: the same ones are set once.

        A model of the user may change them itself, so there each gradient starts from what it is given.
        """
        self._holding = not self._draws and self.buffers is None
        try:
            yield
        finally:
            self._holding, self._filled = False, None

    def write_gradient(self, row: Tensor, parameters: Tensor, x: Any, y: Any, *purpose: str | int) -> None:
        """As `gradient`, written into (d,) on the device."""
        found = self._gradients(parameters, x, y, purpose) + self._left()
        torch.cat([part.reshape(-1) for part in found], out=row)

    def _left(self) -> list[Tensor]:
        """The buffers as a forward pass has left them, where they are part of vectors."""
        return [] if self.buffers is None else [self.buffers.read()]

    def loss(self, parameters: Mapping[str, Tensor], x: Any, y: Any) -> Tensor:
        """The mean loss of a batch as a function of the parameters by name, for `torch.func`.

        Raises:
            InputError: when the model or the loss fails, also for the functions of torch that transform it.
        """
        return self._loss(self._outputs(x, parameters), y)

    def seeded(self, *purpose: str | int) -> AbstractContextManager[None]:
        """The random stream of a purpose for what the model draws, as dropout does."""
        return globally_seeded(self._seed, *purpose, device=self.device)

    def train(self) -> nn.Module:
        """The model, in training mode."""
        if not self._module.training:
            self._module.train()
        return self._module

    def _gradients(
        self, parameters: Tensor, x: Any, y: Any, purpose: tuple[str | int, ...]
    ) -> list[Tensor]:
        if parameters is not self._filled:
            self._fill(parameters)
            self._filled = parameters if self._holding else None
        self.train()
        if not self._draws:
            return self._slopes(x, y)
        with self.seeded(*purpose):
            return self._slopes(x, y)

    def _fill(self, parameters: Tensor) -> None:
        """Give the model these parameters, and the buffers behind them; or those that it is made with."""
        if self.buffers is not None:
            d = parameters.numel() - self.buffers.numel
            whole = d == sum(p.numel() for p in self._weights)
            self.buffers.write(parameters[d:] if whole else self.initial_buffers)
            parameters = parameters[:d] if whole else parameters
        fill(self._weights, parameters)

    def _slopes(self, x: Any, y: Any) -> list[Tensor]:
        """The gradient of each parameter: dense, and 0 where it is not used."""
        with torch.enable_grad():
            loss = self._loss(self._outputs(x), y)
            try:
                found = torch.autograd.grad(loss, self._weights, allow_unused=True, materialize_grads=True)
            except BaseException:
                what = f"{self._name}: the gradient of `loss` {name_of_loss(self.objective.loss)}"
                with guard(what, NO_GRADIENT):
                    raise
        return [slope.to_dense() if slope.is_sparse else slope for slope in found]

    def _outputs(self, x: Any, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """The model's outputs for a batch, with its own parameters or with others."""
        try:
            inputs = (x.float() if self._numeric else x,) if isinstance(x, Tensor) else x
            positional, named = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
            if parameters is None:
                return self._module(*positional, **named)
            return functional_call(self._module, dict(parameters), positional, named)
        except BaseException:
            size, shape = count(x), format_shape(shapes(x))
            samples = "a batch of one sample" if size == 1 else f"a batch of {size} samples"
            with guard(f"{self._name} with {samples} of shape {shape}", "", self._target, ModelError):
                raise

    def _loss(self, outputs: Any, y: Any) -> Tensor:
        loss = self.objective.loss
        try:
            return loss(outputs, y)
        except BaseException:
            advice, target = (
                "See that outputs and targets are what it takes.",
                str(getattr(loss, "target", "")),
            )
            with guard(f"`loss` {name_of_loss(loss)}", advice, target, LossError):
                raise

    @torch.no_grad()
    def evaluate(self, parameters: Tensor) -> dict[str, float]:
        """The mean loss and the metrics on the held-out samples, and on those for validation, by name.

        What fails is NaN, and said once: a run does not end for it.
        """
        self._fill(parameters)
        self._module.eval()
        data = self._dataset
        scores = self._scores_or_nan(data.test_x, data.test_y)
        if data.validation_x is None or data.validation_y is None:
            return scores
        others = self._scores_or_nan(data.validation_x, data.validation_y)
        return scores | {f"{VALIDATION}{name}": score for name, score in others.items()}

    def _scores_or_nan(self, x: Samples, y: Samples) -> dict[str, float]:
        try:
            return self._scores(x, y, count(x))
        except InputError as error:
            self._tell(error)
            return {"loss": math.nan, **dict.fromkeys(self.columns, math.nan)}

    @torch.no_grad()
    def held_out_loss(self, parameters: Tensor, seed: int, round: int, batch: int) -> float:
        """The mean loss on some samples for validation, or all where there are fewer; others in each round.

        What the model draws, if anything, is the same for all parameters of a round.

        Raises:
            InputError: the model or the loss fails, or the data set has no samples for validation.
        """
        data = self._dataset
        if data.validation_x is None or data.validation_y is None:
            raise InputError("`evaluate.validation` should hold samples out of training. Found none.")
        order = torch.randperm(count(data.validation_x), generator=generator(seed, "gate", round))
        chosen = order[:batch].sort().values
        samples, labels = (
            map_tensors(part, lambda t: t.index_select(0, chosen.to(t.device)))
            for part in (data.validation_x, data.validation_y)
        )
        self._fill(parameters)
        self._module.eval()
        total = 0.0
        with globally_seeded(seed, "gate", "model", round, device=self.device):
            for part in batches(len(chosen), self._evaluated_at_once):
                x = data.prepared(map_tensors(samples, lambda t, part=part: t[part].clone()), self.device)  # type: ignore[misc]
                y: Any = map_tensors(labels, lambda t, part=part: t[part].clone().to(self.device))  # type: ignore[misc]
                total += float(self._loss(self._outputs(x), y)) * count(x)
        return total / len(chosen)

    @torch.no_grad()
    def rehearse(self) -> None:
        """Evaluate on a few samples.

        Raises:
            InputError: when the model, the loss or a metric fails.
        """
        self._module.eval()
        self._scores(self._dataset.test_x, self._dataset.test_y, TRIAL, strict=True)

    def _scores(
        self, samples: Samples, labels: Samples, size: int, *, strict: bool = False
    ) -> dict[str, float]:
        """The scores on the first samples."""
        data, metrics, loss = self._dataset, self.objective.metrics, 0.0
        totals: dict[str, Totals] = {name: {} for name in metrics}
        kept: list[Any] = []
        size = min(size, count(samples))
        for part in batches(size, self._evaluated_at_once):
            # Copies: a model or a loss may write to what it is given.
            x = data.prepared(map_tensors(samples, lambda t, part=part: t[part].clone()), self.device)  # type: ignore[misc]
            y: Any = map_tensors(labels, lambda t, part=part: t[part].clone().to(self.device))  # type: ignore[misc]
            others = {
                name: metric.changed(x)
                for name, metric in metrics.items()
                if isinstance(metric, OnChangedInputs)
            }
            outputs = self._outputs(x)
            loss += float(self._loss(outputs, y)) * count(x)
            batch = Evaluated(outputs, y, part.start, self._loss, data.classes, x)
            for name, metric in metrics.items():
                if not metric.whole:
                    seen = replace(batch, outputs=self._outputs(others[name])) if name in others else batch
                    totals[name] = added(totals[name], metric.totals(seen))
            if any(metric.whole for metric in metrics.values()):
                kept.append(copy_to_cpu(outputs))
        for name, metric in metrics.items():
            if metric.whole:
                targets = map_tensors(labels, lambda t: t[:size].clone())
                totals[name] = self._whole(metric, kept, targets, strict)
        found = {
            value_name(name, value): total / divisor if divisor else math.nan
            for name, values in totals.items()
            for value, (total, divisor) in values.items()
        }
        if strict:
            self._fix_columns(found)
        return {"loss": loss / size} | self._in_columns(found)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all values of metrics; a metric with several is known by them after `rehearse`."""
        return tuple(self.objective.metrics) if self._columns is None else self._columns

    def _fix_columns(self, names: Iterable[str]) -> None:
        """Fix the names of all values of metrics.

        Raises:
            MetricError: a name is taken.
        """
        self._columns = tuple(names)
        for name in self._columns:
            check_name(name)

    def _in_columns(self, found: Mapping[str, float]) -> dict[str, float]:
        """The values of metrics under the names that are known; NaN for one that is missing."""
        if self._columns is None:
            return dict(found)
        if unknown := [name for name in found if name not in self._columns and found[name] == found[name]]:
            said = ", ".join(unknown[:SHOWN])
            self._tell(
                MetricError(f"`metrics` should give values of the same names as at first. Found {said}")
            )
        return {name: found.get(name, math.nan) for name in self._columns}

    @torch.no_grad()
    def training_loss(self, parameters: Tensor) -> float:
        """The mean loss on training samples that are here, always the same ones; NaN where it fails."""
        self._fill(parameters)
        self._module.eval()
        size = self._dataset.size
        chosen = torch.randperm(size, generator=generator(self._seed, "training loss"))[:TRAINING_SAMPLES]
        loss = 0.0
        try:
            for part in batches(len(chosen), self._evaluated_at_once):
                x, y = self.batch(chosen[part])
                loss += float(self._loss(self._outputs(x), y)) * count(x)
        except InputError as error:
            self._tell(error)
            return math.nan
        return loss / len(chosen)

    @property
    def evaluation_bytes(self) -> int:
        """Memory of an evaluation at most: activations, and outputs that a metric needs all at once."""
        held_out = (self._dataset.test_x, self._dataset.validation_x)
        size = max(count(samples) for samples in held_out if samples is not None)
        activations, outputs = self._footprint
        whole = size if any(metric.whole for metric in self.objective.metrics.values()) else 0
        return activations * min(self._evaluated_at_once, size) + 2 * outputs * whole

    def samples_at_once(self, bytes: int) -> int:
        """The number of samples whose activations, kept for a backward pass, take no more memory than this.

        On a GPU half of its free memory counts instead.
        """
        if self.device.type == "cuda":
            bytes = torch.cuda.mem_get_info(self.device)[0] // 2
        with torch.enable_grad():
            kept, _ = self._measure()
        return max(1, bytes // max(1, kept))

    @property
    def state_bytes(self) -> int:
        """The size of the whole state of the module; tied tensors count once for each name."""
        state = self._module.state_dict().values()
        return sum(value.nbytes for value in state if isinstance(value, Tensor))

    @cached_property
    def _evaluated_at_once(self) -> int:
        activations, _ = self._footprint
        return max(1, min(EVALUATION_BATCH, EVALUATION_BYTES // max(1, activations)))

    @cached_property
    def _footprint(self) -> tuple[int, int]:
        """Bytes for one sample in an evaluation, measured: of activations, and of outputs."""
        with torch.no_grad():
            return self._measure()

    def _measure(self) -> tuple[int, int]:
        size = min(TRIAL, self._dataset.size)
        x, y = self.batch(torch.arange(size))
        known = [*self._module.parameters(), *self._module.buffers(), *leaves(x), *leaves(y)]
        seeded = self.seeded("footprint")
        with seeded, MemoryFootprint(known) as footprint, suppress(InputError):
            outputs = self._outputs(x)
            kept = [outputs, self._loss(outputs, y)]  # with what a backward pass would need
            bytes = sum(tensor.nbytes for tensor in leaves(kept[0]))
            return -(-WORKSPACE * footprint.peak // size), -(-bytes // size)
        return 0, 0

    def _whole(self, metric: Metric, outputs: list[Any], targets: Any, strict: bool) -> Totals:
        """A metric of all held-out samples at once; NaN when it fails."""
        target = str(getattr(metric, "target", ""))
        try:
            with guard(f"`metrics` {target}", "See that it takes what the model gives.", target):
                classes = self._dataset.classes
                return metric.totals(Evaluated(concatenate(outputs), targets, 0, self._loss, classes))
        except InputError as error:
            if strict:
                raise
            self._tell(error)
            return {"": (math.nan, 1)}

    def _tell(self, error: InputError) -> None:
        """Each message once."""
        if str(error) not in self._told:
            self._told.add(str(error))
            log.warning("An evaluation failed: %s", error, extra=event("evaluation_failed"))

    def state(self, parameters: Tensor) -> dict[str, Any]:
        """The whole state of the module with these parameters, on the CPU; of use until the next call."""
        self._fill(parameters)
        state = self._module.state_dict()
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}


def build_model(model: Model, dataset: Dataset, seed: int) -> nn.Module:
    """A model with its initial parameters, on the CPU so that they are the same for every device.

    Lazy layers take their sizes from a first pass over two samples.

    Raises:
        ModelError: when it cannot be built for this data.
    """
    cpu = torch.device("cpu")
    with globally_seeded(seed, "initial", device=cpu), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
        module = call_builder(model, dataset)
        if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
            initialise_lazy(module, describe_model(model), dataset)
    if is_built_in(model):
        module = module.float()  # whatever type a program has as its default
    check_memory_apart(module)
    return module


def call_builder(model: Model, dataset: Dataset) -> nn.Module:
    target = getattr(model, "target", None)
    if target is not None:
        return model.build(dataset.features, dataset.outputs)
    advice = "A model of your own can be named as model.custom.target."
    with guard(
        f"{describe_model(model)} for samples of shape {format_shape(dataset.features)}",
        advice,
        "",
        ModelError,
    ):
        return model.build(dataset.features, dataset.outputs)


@torch.no_grad()
def initialise_lazy(module: nn.Module, name: str, dataset: Dataset) -> None:
    """Give lazy layers their sizes and their first values."""
    x = dataset.prepared(map_tensors(dataset.train_x, lambda t: t[:TRIAL].clone()), torch.device("cpu"))
    module.eval()
    with guard(f"{name}: the first pass, which gives lazy layers their sizes,", "", "", ModelError):
        module(**x) if isinstance(x, dict) else module(*x) if isinstance(x, tuple) else module(x)
    module.train()
    left = [key for key, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if left:
        raise ModelError(
            f"{name}: lazy layers should get their sizes in a first pass. Found none for "
            f"{', '.join(left[:4])}, which it does not use. Give these layers their sizes."
        )


def is_built_in(model: Model) -> bool:
    """Whether a model is one of those here, which take integers as numbers: none has an embedding."""
    return any(type(model) is MODELS.entry(name)[0] for name in MODELS) and not hasattr(model, "target")


def describe_model(model: Model) -> str:
    known = {MODELS.entry(name)[0]: name for name in MODELS}
    return f"`model` {target_name(model, known.get(type(model), type(model).__name__))}"


def batches(size: int, at_once: int) -> Iterator[slice]:
    """Samples in parts of so many, the last one smaller."""
    for start in range(0, size, at_once):
        yield slice(start, min(start + at_once, size))


def leaves(value: Any) -> list[Tensor]:
    """The tensors in inputs, targets or outputs."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def copy_to_cpu(outputs: Any) -> Any:
    """The same structure, with copies of the tensors on the CPU."""
    return tree_map(lambda leaf: leaf.cpu().clone() if isinstance(leaf, Tensor) else leaf, outputs)


def concatenate(parts: list[Any]) -> Any:
    """Outputs of several batches as those of one: tensors one after the other, the rest as in the first."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(tree_leaves(part) for part in parts), strict=True)
    _, structure = tree_flatten(parts[0])
    return tree_unflatten(
        [torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns], structure
    )
