"""Rows: where pushed vectors lie, and which of them the rule sees.

A slot is one upload's permission to fill one row. Sources make the matrix of a round from the rows: as they
were pushed, weighted by age, or with the latest vectors of absent workers. The rounds, the transport, the
participations and the launcher import it; it imports the protocol's events and the model's side.
"""
