"""Buffers of a model, as the running statistics of BatchNorm: what training changes beside the parameters.

`vector` makes numbers at the end of the model's vector of them, and back; `local` keeps those of each
worker from round to round, where they do not travel. The trainer and the Python client import them.
"""
