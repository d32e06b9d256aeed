"""`varangian report`: one page about runs that works offline, and the figures of a paper.

It shows what `results` has read and computes nothing itself. The command line imports `command`, by name;
a sweep imports `page`, and nothing else of the package imports this.
"""
