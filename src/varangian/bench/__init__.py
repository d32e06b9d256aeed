"""Benchmarks of the aggregators, of the wire, and of whole rounds; results are checked, then timed.

`varangian.cli.arguments.bench` names the commands; nothing else of the package imports this.
"""
