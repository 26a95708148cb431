"""Synthetic scenes with exact labels, made from a seed; for the demo and the tests."""
