"""Robust aggregation of models that clients of another framework send, as arrays by name.

`arrays` has the layout of such a model and what may be wrong with one, `rounds` the record of a round,
`models` the aggregation, `claims` weights that clients claim. Adapters import it; it imports
`varangian.aggregators` and knows no framework.
"""
