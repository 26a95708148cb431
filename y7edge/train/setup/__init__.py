"""Build the parts of a run."""
