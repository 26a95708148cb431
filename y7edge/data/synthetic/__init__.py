"""Generate synthetic scenes with exact labels from a seed, for the demo and tests."""
