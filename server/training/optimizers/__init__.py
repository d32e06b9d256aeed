"""Optimizers of the server: how the parameters move along an aggregate, by name or made by a program.

An optimizer is a frozen dataclass whose fields are its settings (`base`); a stepper has it work and
remembers what it needs from step to step. Left out of `torch.optim` are LBFGS, which computes the loss
several times in a step, and SparseAdam, which takes no dense gradient. The learner imports it, and whoever
builds a run.
"""

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from varangian.server.training.optimizers.base import OPTIMIZERS, Bounds, Optimizer
from varangian.server.training.optimizers.by_shape import Adafactor, Muon
from varangian.server.training.optimizers.fedopt import FedAdagrad, FedAdam, FedOpt, FedYogi
from varangian.server.training.optimizers.normalized import NormalizedSgd
from varangian.server.training.optimizers.of_torch import (
    ASGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    Sgd,
)
from varangian.server.training.optimizers.own import OptimizerFactory, OwnOptimizer, SchedulerFactory
from varangian.server.training.optimizers.shaped import ShapedStepper
from varangian.server.training.optimizers.stepper import Stepper

__all__ = [
    "ASGD",
    "OPTIMIZERS",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AnyStepper",
    "Bounds",
    "FedAdagrad",
    "FedAdam",
    "FedOpt",
    "FedYogi",
    "Muon",
    "NAdam",
    "NormalizedSgd",
    "Optimizer",
    "OptimizerFactory",
    "OwnOptimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SchedulerFactory",
    "Sgd",
    "ShapedStepper",
    "Stepper",
    "stepper_for",
]

AnyStepper: TypeAlias = Stepper | ShapedStepper


def stepper_for(
    optimizer: Optimizer, parameters: Tensor, shapes: Sequence[Sequence[int]] | None = None
) -> AnyStepper:
    """A stepper of an optimizer.

    Args:
        optimizer: of the run.
        parameters: (d,), at the start, on the device of the steps.
        shapes: of the parameters of the model; None takes the vector for one parameter.
    """
    if not optimizer.shaped:
        return Stepper(optimizer, parameters.numel(), parameters.device)
    whole = isinstance(optimizer, OwnOptimizer) and not optimizer.needs_shapes
    return ShapedStepper(optimizer, parameters, [parameters.shape] if whole or shapes is None else shapes)
