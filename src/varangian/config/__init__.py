"""The configuration of a run: one YAML for server and workers, checked as a whole.

`load` reads a file and overrides into a frozen `RunConfig`, or raises a `ConfigError` with every problem.
It stands above the server and the workers, whose registries it reads; `launch` and the command line import
it. `settings.py` has the settings, `checks/` what is asked of several of them together.
"""

from varangian.config.checks.all_checks import advice
from varangian.config.load import load, loads
from varangian.config.settings import RunConfig

__all__ = ["RunConfig", "advice", "load", "loads"]
