"""`varangian bench wire`: how fast vectors move beside raw TCP, and at what price.

`ways` has every way that is measured, one in each file. The command line imports `command`, by name; the
rest is imported here and by the scripts in `benchmarks/`.
"""
