"""Figures of results as matplotlib draws them: for papers as PDF and PNG, and `varangian plot`.

Everything here needs the extra `report`. The report and the command line import it, and nothing else does.
"""
