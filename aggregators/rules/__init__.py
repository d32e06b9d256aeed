"""Aggregation rules, one in each file: n vectors in, one out.

A rule is a frozen dataclass of one of the shapes in `varangian.aggregators.base`; its fields are its
settings. Rules import `base`, `gram`, `numeric` and nothing else of the package; they are imported by
`varangian.aggregators`, where everybody else takes them from.
"""
