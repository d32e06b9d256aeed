"""Aggregation in parts: by blocks of columns, and of rows of which few change between calls.

For whoever cannot or need not have all n vectors at once. The server's rounds and rows import it; it
imports the pipeline and the kernels, and no rule.
"""
