"""Checks between settings: each setting is valid by itself, and the run still could not keep its promise.

`all_checks.py` lists the checks, with the settings that each of them reads; `fixes.py` tries a suggestion
against all of them before it is made.
`varangian.config.load` runs them; they import the tree of settings and what is built from it.
"""
