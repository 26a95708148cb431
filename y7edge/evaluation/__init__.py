"""Evaluation of detectors without torch: average precision, curves, confusion, reports."""
