"""The processes of workers that a run starts on this machine: how they are started, and what runs in each.

`varangian.launch` starts them, and the sweeps use how their ends are described.
"""
