"""The detection loss, and the assignment of targets to cells."""
