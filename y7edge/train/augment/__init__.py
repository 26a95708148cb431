"""Augmentation of training images and their labels; `pipeline` applies all steps in order."""
