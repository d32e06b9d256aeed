"""Analyses, one file for each: curves over rounds, worst cases, heat maps, and trust over time."""
