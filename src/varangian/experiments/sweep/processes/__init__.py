"""Processes and folders of a sweep: a process for each run, and a run folder with its identity as a name.

`runner` starts them through `forker`; `job` is one run in its process; `folders` is shared with other
sweeps. `sweep` and `pace` import it; it knows nothing of grids and plans.
"""
