"""Analyses, one file for each: curves over rounds, worst cases, heat maps of two settings, trust over time."""
