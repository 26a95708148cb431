"""Measurement of latency, and of the cost of the code around the engine."""
