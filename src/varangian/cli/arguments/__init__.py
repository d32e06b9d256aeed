"""The arguments of every command, and their help.

Plain argparse: nothing heavy is imported here, so that `varangian --help` answers at once. Each entry names
the module that carries the command out. `varangian.cli.main` imports it, and tests.
"""
