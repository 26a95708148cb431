"""Evaluation of detectors, torch-free: average precision, curves, confusion, and reports.

``evaluate`` runs a detector over a split and collects the metrics; the other modules compute them
from tables of boxes (``average_precision``, ``curves``, ``confusion``), draw them (``plots``,
``predictions``) and write them (``report``, ``coco_results``).
"""
