"""Ranks: what the record of robust steps inside torch.distributed says of each rank.

`read` reads the file that `varangian.torch` writes with `log=`, and counts. The report imports it.
"""
