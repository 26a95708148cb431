"""Files of a run: checkpoints, table, curves, images, events, report; ``writer`` writes them."""
