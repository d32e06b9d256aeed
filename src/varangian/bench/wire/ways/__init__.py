"""Ways to bring gradients from workers to a server: ours, the measure, and those of others."""
