"""The verbs that read d columns: screen, gram, combine, columnwise. `reference` defines them."""

from varangian.aggregators.kernels.dispatch import BACKENDS, Backend, BackendRefused, backend_for

__all__ = ["BACKENDS", "Backend", "BackendRefused", "backend_for"]
