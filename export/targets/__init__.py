"""Targets: one module for each kind of artifact, listed by ``registry``."""
