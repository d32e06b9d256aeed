"""The worker: pull, compute, push; and the Byzantine workers that do something else."""
