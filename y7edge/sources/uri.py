"""Open a source by its URI."""

from __future__ import annotations

from pathlib import Path

from y7edge.artifact.schema import nearest
from y7edge.errors import SourceError
from y7edge.sources.address import LIVE, Address, Option, parse
from y7edge.sources.base import Source

_TESTS = ("pattern", "scenes")


def open_source(uri: str | int | Path, **options: Option) -> Source:
    """Open a camera, a network stream, a video, a folder, or a test pattern."""
    address = parse(uri, options)
    if address.scheme == "file":
        from y7edge.sources.files import open_files

        return open_files(address)
    if address.scheme == "replay":
        raise SourceError(f"{address.name}: not written yet")
    return _camera(address)


def _camera(address: Address) -> Source:
    from y7edge.sources.capture import (  # type: ignore[import-not-found, unused-ignore]
        Camera,
    )

    options = dict(address.options)
    shared = {name: options.pop(name) for name in ("open_timeout", "retries") if name in options}
    if address.scheme == "test":
        if address.place not in _TESTS:
            hint = nearest(address.place, _TESTS)
            raise SourceError(f"{address.name}: unknown test source{hint}")
        opened: Source = Camera(address.name, address.place, options, **shared)
        return opened
    assert address.scheme in LIVE
    raise SourceError(f"{address.name}: not written yet")
