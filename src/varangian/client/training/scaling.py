"""Mixed precision: gradients are sent without the scale of a `GradScaler`.

`torch.amp.GradScaler` unscales the gradients of an optimizer, and a loop with a server has none of its own:
so there is an object here that has its parameters and takes no step. What `scaler.update()` needs to know
is noted in the scaler as in any other loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from varangian.worker.transport.client import ClientError

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler
    from torch.optim import Optimizer


class Held:
    """The parameters that a scaler looks at, as in an optimizer."""

    def __init__(self) -> None:
        self.param_groups: list[dict[str, Any]] = []


class Unscaling:
    """Divides gradients by the scale of a scaler, once for each of its updates."""

    def __init__(self) -> None:
        # One and the same for all pushes: the scaler knows optimizers by their place in memory.
        self._held = Held()
        self._pushed: object = None
        """What the scaler knew of optimizers at the last push; after an update that is another object."""

    def vector(self, scaler: GradScaler, gradients: Tensor) -> None:
        """Unscale a vector in place, unless the gradients that it was made from have been unscaled.

        Raises:
            ClientError: it is no scaler, was not used for the loss, or not updated after the last push.
        """
        if not is_enabled(scaler):
            return
        known = states(scaler)
        if known is not None and known is self._pushed:
            raise ClientError("`scaler` should be updated after each push: call scaler.update().")
        if not any(is_unscaled(state) for state in (known or {}).values()):
            parameter = nn.Parameter(gradients, requires_grad=False)
            parameter.grad = gradients  # the same memory
            self._unscale(scaler, [parameter])
        self._pushed = states(scaler)

    def parameters(self, scaler: GradScaler, parameters: Sequence[nn.Parameter]) -> None:
        """Unscale the gradients of parameters in place, as to clip them before a push.

        Raises:
            ClientError: as above, or torch does not unscale gradients of this type.
        """
        if is_enabled(scaler):
            self._unscale(scaler, parameters)

    def _unscale(self, scaler: GradScaler, parameters: Sequence[nn.Parameter]) -> None:
        self._held.param_groups = [{"params": list(parameters)}]
        try:
            scaler.unscale_(cast("Optimizer", self._held))
        except AssertionError:
            raise ClientError(
                "`scaler` should have scaled the loss. Found one that has not: call "
                "scaler.scale(loss).backward() before push(scaler=scaler)."
            ) from None
        except (RuntimeError, ValueError) as error:
            raise ClientError(
                f"`scaler` cannot unscale these gradients. Torch says: {error} Is there a "
                "scaler.update() after each push?"
            ) from None
        finally:
            self._held.param_groups = []


def is_enabled(scaler: GradScaler) -> bool:
    """Whether there is a scale to undo.

    Raises:
        ClientError: it is no scaler.
    """
    enabled: object = getattr(scaler, "is_enabled", None)
    if not callable(enabled) or not callable(getattr(scaler, "unscale_", None)):
        raise ClientError(f"`scaler` should be a torch.amp.GradScaler. Found {type(scaler).__name__}.")
    return bool(enabled())


def states(scaler: GradScaler) -> Any:
    """What a scaler knows of optimizers since its last update; None in a torch that has it elsewhere."""
    return getattr(scaler, "_per_optimizer_states", None)


def is_unscaled(state: Any) -> bool:
    """Whether the gradients of an optimizer were unscaled since the last update."""
    return getattr(state.get("stage"), "name", "") == "UNSCALED"
