"""Training: the learner, its parameters and optimizer, learning rates, the average of the model.

Rows go in, and a `Step` comes out; nothing here knows of a call, a deadline or a clock. The rest of the
server may import it; it imports `varangian.aggregators`, and the encoding of payloads.
"""
