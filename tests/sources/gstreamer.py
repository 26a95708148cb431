"""Skip tests of GStreamer where it, or one of its elements, is not installed."""

import pytest


def require(*elements):
    """Skip the calling module unless GStreamer has these elements."""
    pytest.importorskip("gi", reason="PyGObject is not installed")
    from y7edge.sources.appsink import has
    from y7edge.sources.launch import gstreamer_problem

    if problem := gstreamer_problem():
        pytest.skip(problem, allow_module_level=True)
    if lacking := [name for name in elements if not has(name)]:
        pytest.skip(f"GStreamer has no {', '.join(lacking)}", allow_module_level=True)
