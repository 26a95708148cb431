"""A training run: the loop, its state on disk, resuming, several processes, progress."""
