"""The seam between a server and its model: what is trained, how well it does, and what is saved of it.

`WorkerCompute` builds a model as the settings say; `varangian.serving` has one for a module of a program.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from varangian.protos.layout import Layout
from varangian.protos.shared_settings import SharedSettings


class ModelSide(Protocol):
    """The model of a run, as its server needs it. Methods can be called from any thread."""

    @property
    def layout(self) -> Layout:
        """Names and shapes of what trains."""
        ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names in the state of the model of the entries of the layout, in their order."""
        ...

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of all scores of an evaluation but the loss, in order; known after `rehearse`."""
        ...

    @property
    def common(self) -> SharedSettings:
        """The settings and data that workers should share."""
        ...

    @property
    def classes(self) -> int | None:
        """The number of classes, for workers whose own data has fewer; None where nobody needs it."""
        ...

    @property
    def recipe(self) -> Mapping[str, str]:
        """What is needed besides the settings to build the model again; empty where nothing can."""
        ...

    @property
    def evaluation_bytes(self) -> int:
        """The most bytes of memory that an evaluation takes."""
        ...

    @property
    def state_bytes(self) -> int:
        """The size of the whole state of the model."""
        ...

    def initial(self) -> Tensor:
        """The parameters that a run starts from, (d,) float32 on the CPU."""
        ...

    def rehearse(self, parameters: Tensor, /) -> Mapping[str, str]:
        """Try what the run will ask for.

        Returns:
            Workers that cannot take part, and the reason.

        Raises:
            InputError: an evaluation fails.
        """
        ...

    def evaluate(self, parameters: Tensor, /) -> Mapping[str, float]:
        """The scores of these parameters by name; NaN where it fails."""
        ...

    def training_loss(self, parameters: Tensor, /) -> float | None:
        """The loss on training samples that the server has; None where it has none."""
        ...

    def held_out_loss(self, parameters: Tensor, seed: int, round: int, batch: int, /) -> float:
        """The loss on samples that nobody trains on, for the gate.

        Args:
            parameters: (d + b,).
            seed: of the draw of samples; in one round they are the same for all parameters.
            round: which.
            batch: how many samples; without a meaning for a function of a program.

        Raises:
            InputError: code of the user fails.
        """
        ...

    def model_state(self, parameters: Tensor, /) -> AbstractContextManager[dict[str, Any]]:
        """The whole state of the model with these parameters, for as long as nothing else is computed."""
        ...
