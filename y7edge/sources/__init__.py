"""Cameras, network streams, videos, folders and test patterns, all read as frames."""
