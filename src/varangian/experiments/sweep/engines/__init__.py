"""Engines that a sweep hands its runs to, in place of processes of its own: Slurm, Kubernetes, Ray.

A run goes to the engine as a part of a batch (`batch`), is carried out on some node by `task`, and fills
the same folder as everywhere. `queue` is what an engine has to offer, one file each beside it; `runner`
hands runs over, and finds out what has become of them; `choice` knows the names of engines.
"""
