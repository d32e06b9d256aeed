"""Figures of results as matplotlib draws them: for papers as PDF and PNG, and `varangian plot`.

All of it needs the extra `report`. `draw` makes the figures of a study, which the report asks for; the
command line imports `plot`, by name.
"""
