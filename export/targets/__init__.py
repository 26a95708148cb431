"""Targets: what an export builds, one file each, found by listing this folder (``registry``)."""
