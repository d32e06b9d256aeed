"""Rows: where pushed vectors lie, and which of them the rule sees.

A slot lets one upload fill one row of the storage. A row source makes the input of a step from the rows: as
they were pushed, weighted by age, or with the latest vectors of workers that are away. The rounds, the
transport, the participations and the launcher import it; it imports the protocol's events and the training.
"""
