"""Labelled pictures: readers of the common layouts, and scenes made by the package itself."""
