"""The loss, and the assignment of targets to cells that it is computed on."""
