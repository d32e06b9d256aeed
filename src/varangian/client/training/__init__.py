"""A user's training step: the model as a vector and back, mixed precision, worker momentum and deltas."""
