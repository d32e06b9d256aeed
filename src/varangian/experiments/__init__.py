"""Experiments: many runs, what they say together, and a report that people can look at.

`sweep` carries the runs of a grid out, `results` reads runs and compares rules, `report` draws them,
`advice` names a rule, `audit` checks what a server recorded, `redteam` searches for attacks.
`varangian.cli.arguments.experiments` names the commands; nothing below imports this.
"""
