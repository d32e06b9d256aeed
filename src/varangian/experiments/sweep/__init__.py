"""`varangian sweep`: the points of a grid, each a run in a process and a folder of its own.

`grid` reads a grid file, `plan` makes its points, `sweep` runs them in `processes`. The command line
imports `command`, by name, and `varangian.sweep` the rest; it imports the other rooms of `experiments`.
"""
