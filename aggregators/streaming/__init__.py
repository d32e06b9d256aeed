"""Streaming aggregation: block by block of columns, or of rows of which few change between rounds.

For servers that do not keep all n vectors in memory, or need not measure all of them again, and for ranks
that hold some columns each. The server's rounds and rows and `varangian.torch` import it; it imports the
pipeline and the kernels, and no rule.
"""
