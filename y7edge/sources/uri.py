"""Open a source by its URI."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from y7edge.artifact.schema import nearest
from y7edge.errors import SourceError
from y7edge.sources.address import SHARED, Address, Option, parse
from y7edge.sources.base import Source

_log = logging.getLogger("y7edge.sources")
_TESTS = ("pattern", "scenes")


def open_source(uri: str | int | Path, **options: Option) -> Source:
    """Open a camera, a network stream, a video, images, a recording, or a test pattern.

    - ``csi://0``: a camera at the CSI connector of a Jetson;
    - ``/dev/video0``, ``0``: a USB camera; also ``v4l2:///dev/video0``;
    - ``rtsp://user:pw@host/path``: a network camera; also ``rtp://``, ``http://``, ``https://``;
    - ``gst://PIPELINE``: a GStreamer pipeline without its sink;
    - ``video.mp4``, ``image.jpg``: a file; also ``file://video.mp4``;
    - ``images/``, ``images/*.png``: the images and videos of a folder or pattern, sorted by name;
    - ``replay://FOLDER``: a recording of ``y7edge live --record``, with its capture times;
    - ``test://pattern``: a test pattern without a camera; also ``test://scenes``.

    Options follow the URI, as in ``csi://0?width=1280&rate=30``, or are keyword arguments. The
    query of a network URI may also have parameters for its server: those are passed on. After a
    ``#``, as in ``http://host/video?width=640#latency=0``, the whole query is the server's.

    A path that exists is a file, whatever its name is.

    Args:
        uri: a URI, a path, a pattern, or the number of a USB camera. A ``Path`` is always a file.
        options: of a camera or stream: those of ``y7edge.sources.options``, ``open_timeout``
            (seconds to wait for the first frame) and ``retries`` (how often to open it again after
            a fault); of files: see ``y7edge.sources.files.open_files``; of a recording: see
            ``y7edge.sources.replay.open_replay``.

    Raises:
        SourceError: the source cannot be opened.
        ConfigError: an option is unknown or invalid.
        RuntimeMissing: a package that the source needs is not installed.
    """
    address = parse(uri, options)
    if address.scheme == "file":
        from y7edge.sources.files import open_files

        return open_files(address)
    if address.scheme == "replay":
        from y7edge.sources.replay import open_replay

        return open_replay(address)
    return _camera(address)


def _camera(address: Address) -> Source:
    from y7edge.sources.capture import Camera
    from y7edge.sources.launch import check, choose

    own = {name: value for name, value in address.options.items() if name not in SHARED}
    shared: dict[str, Any] = address.only(*SHARED).numbers(
        open_timeout=(0.1, 3600.0), retries=(0, 1_000_000)
    )
    if address.scheme == "test":
        if address.place not in _TESTS:
            hint = nearest(address.place, [f"test://{name}" for name in _TESTS])
            raise SourceError(f"{address.name}: unknown test source{hint}")
        return Camera(address.name, address.place, own, **shared)
    values = check(address.scheme, address.place, own)
    kind, chosen = choose(address.scheme, address.place, own)
    rate = float(values["rate"]) if "rate" in values else None
    camera = Camera(address.name, kind, chosen, rate=rate, **shared)
    if kind == "video_capture" and values.get("backend", "auto") == "auto":
        _log.warning(
            "%s: opened with OpenCV, so timestamps are arrival times, not capture times; `y7edge "
            "check` says how to install GStreamer",
            address.name,
        )
    return camera
