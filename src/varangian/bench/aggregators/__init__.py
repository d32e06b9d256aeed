"""`varangian bench aggregators`: what a rule costs beside a mean.

Every result is checked before it is timed. The command line imports `command`, by name; the rest is
imported here and by the scripts in `benchmarks/`.
"""
