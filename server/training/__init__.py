"""The model's side of a round: one step of the optimizer on an aggregate, and what it keeps.

Parameters, optimizer, learning rates, the average of the model. Rows in, a `Step` out: nothing here knows
of a worker, a call or a clock. The rest of the server may import it; it imports `varangian.aggregators`.
"""
