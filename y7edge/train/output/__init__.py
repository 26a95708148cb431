"""What a run leaves in its folder: checkpoints, table, curves, pictures, events, report.

``keep`` writes it all, ``folder`` knows the names.
"""
