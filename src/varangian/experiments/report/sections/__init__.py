"""Sections of the page, one file for each: curves, heat maps, worst cases, trust over time, the account."""
