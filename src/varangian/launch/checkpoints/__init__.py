"""Checkpoints of a server: when they are written, which are kept, and who may write in a run folder.

A checkpoint is one state file, `checkpoints/round-000050.safetensors`. The run of a server imports this.
"""
