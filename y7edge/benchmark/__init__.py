"""Latency with percentiles, and the budget of the code around the engine."""
