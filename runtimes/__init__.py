"""Runtimes: one module per engine, listed by ``registry`` and imported on first use."""
