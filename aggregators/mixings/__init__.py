"""Mixings, one in each file: n vectors become k combinations of them before the rule sees them.

A mixing is a frozen dataclass that turns the Gram matrix into weights (`varangian.aggregators.base`).
Mixings import `base`, `gram`, `numeric` and nothing else of the package; they are imported by
`varangian.aggregators`, where everybody else takes them from.
"""
