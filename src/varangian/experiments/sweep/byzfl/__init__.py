"""Translation of benchmark configurations of ByzFL (`config.json`) into grids.

`reading` checks such a file, `names`, `experiment` and `workers` say what stands here for its parts, and
`translation` makes the grid. The command of the sweep imports it; byzfl itself is not needed.
"""

from varangian.experiments.sweep.byzfl.translation import Translation, read_byzfl, translate

__all__ = ["Translation", "read_byzfl", "translate"]
