"""A Flower app whose server takes attackers: `task` has model and data, the others the two sides."""
