"""Averages of weights: EMA, SWA, soups, and the BatchNorm statistics that they need."""
