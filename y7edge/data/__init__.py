"""Labelled images: readers of the common layouts, and synthetic scenes."""
