"""Checks of a whole configuration: what no single setting shows.

Whether the rule can hold with these numbers, whether rounds can end, whether workers come often enough.
`varangian.config.load` runs them; they import the tree of settings and what is built from it.
"""
