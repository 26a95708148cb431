"""Settings of a training: the run's configuration, recipes, and their files."""
