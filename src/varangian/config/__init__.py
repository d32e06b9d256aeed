"""One YAML for server and workers; the only place that knows every registry.

`load` reads a file and overrides into a frozen `RunConfig`, or raises a ConfigError with every problem.
"""

from varangian.config.checks.table import advice
from varangian.config.load import load, loads
from varangian.config.tree import RunConfig

__all__ = ["RunConfig", "advice", "load", "loads"]
