"""Images and data sets: reading, checking, and synthetic scenes."""
