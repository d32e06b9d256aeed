"""The committed evidence: grids for `varangian sweep`, and what becomes of their runs.

`python benchmarks/evidence.py` is the command; the page docs/reference/evidence.md is printed from its
results.
"""
