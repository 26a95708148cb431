"""A grabber whose package is not installed."""

from y7edge.errors import RuntimeMissing


def grabber(options):
    raise RuntimeMissing("this needs nothing: pip install nothing")
