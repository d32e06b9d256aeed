"""The parameter server: a round machine without I/O, and the thin shells around it."""
