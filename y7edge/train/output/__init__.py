"""Write the files of a run: checkpoints, table, plots, images, TensorBoard events, report."""
