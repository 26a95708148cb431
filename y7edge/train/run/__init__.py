"""A training run: the loop, its state, and distributed processes."""
