"""`varangian redteam`: a search for the attack that harms an aggregator most.

`recording` keeps honest vectors of a few rounds, `evaluation` plays a policy on them, `search` is the
genetic search, `confirmation` trains under the best of it and under the catalogue. The command line imports
`command`, by name; this imports `varangian.experiments.sweep`.
"""
