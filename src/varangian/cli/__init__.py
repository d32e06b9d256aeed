"""The command line: arguments, commands, and views of a run.

Nothing heavy is imported before a command needs it. `varangian.__main__` and `varangian.bench` and
`varangian.experiments` import it.
"""
