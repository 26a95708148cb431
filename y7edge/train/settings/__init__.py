"""Settings of training: the run's configuration, recipes, and their files."""
