"""Augmentation: from a set of pictures to one that the network trains on, labels included.

``pipeline`` is the whole of it, in the published order; ``settings`` says how strong everything is.
"""
