"""A Flower app whose server takes up to f attackers: `task` has model and data, the others the two sides."""
