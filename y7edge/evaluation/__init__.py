"""Judgement of detectors, torch-free: average precision, curves, confusion, and how they look.

``y7edge.evaluate`` asks a detector and puts the figures together; the modules here compute them
from tables of boxes (``average``, ``curves``, ``confusion``), draw them (``plots``, ``pictures``)
and write them down (``saving``, ``submission``, ``report``).
"""
