"""Network cameras through ``open_source``: real servers, killed and restarted."""

import time

import pytest

from tests.sources.gstreamer import require
from tests.sources.streams import RtspServer, http_server

require(
    *("videotestsrc", "x264enc", "rtph264pay", "jpegenc", "rtpjpegpay", "alawenc", "rtspsrc"),
    *("souphttpsrc", "multipartdemux", "jpegdec", "h264parse", "avdec_h264"),
)
gi = pytest.importorskip("gi")
try:
    gi.require_version("GstRtspServer", "1.0")
except ValueError:
    pytest.skip("gir1.2-gst-rtsp-server-1.0 is not installed", allow_module_level=True)

from y7edge.errors import SourceError, SourceTimeout  # noqa: E402
from y7edge.sources import launch  # noqa: E402
from y7edge.sources.uri import open_source  # noqa: E402


def next_frame(source, seconds=60.0):
    end = time.monotonic() + seconds
    while True:
        try:
            return source.read(0.5)
        except SourceTimeout:
            assert time.monotonic() < end, source.status


def test_opencv_instead_of_gstreamer_is_said_once(monkeypatch, caplog):
    with http_server() as port:
        uri = f"http://me:secret@127.0.0.1:{port}/a.mjpg"
        with open_source(uri, backend="opencv") as source:
            next_frame(source)
        assert not caplog.records
        monkeypatch.setattr(launch, "gstreamer_problem", lambda: "PyGObject is not installed: x")
        with open_source(uri) as source:
            assert next_frame(source).rate is None
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.name == "y7edge.sources" and record.getMessage() == (
        f"http://127.0.0.1:{port}/a.mjpg: opened with OpenCV, so timestamps are arrival times, not "
        "capture times; `y7edge check` says how to install GStreamer"
    )


@pytest.mark.parametrize("backend", ["gstreamer", "opencv"])
def test_the_server_is_killed_and_restarted(backend):
    served = RtspServer()
    port = served.port
    try:
        uri = f"rtsp://127.0.0.1:{port}/h264?transport=tcp&backend={backend}"
        with open_source(uri, retries=1000) as source:
            assert source.live and source.name == f"rtsp://127.0.0.1:{port}/h264"
            for _ in range(3):
                frame = next_frame(source)
            assert frame.image.shape == (240, 320, 3) and frame.source == source.name
            assert source.status.backend == backend
            served.kill()
            began = time.monotonic()
            while source.status.state == "running":
                assert time.monotonic() < began + 30
                time.sleep(0.05)
            noticed = time.monotonic() - began
            served = RtspServer(port)
            while source.status.reconnects == 0:
                assert time.monotonic() < began + 60, source.status
                time.sleep(0.05)
            after = next_frame(source)
            status = source.status
        assert after.sequence > frame.sequence
        assert status.state == "running" and status.problem
        print(f"{backend}: noticed after {noticed:.2f} s: {status.problem}")
    finally:
        served.kill()


def test_a_changed_resolution_and_a_password():
    served = RtspServer()
    try:
        with open_source(f"rtsp://127.0.0.1:{served.port}/resize") as source:
            sizes = {next_frame(source).size}
            while (640, 480) not in sizes:
                sizes.add(next_frame(source).size)
            assert sizes == {(320, 240), (640, 480)} and source.status.reconnects == 0
        place = f"127.0.0.1:{served.private}/h264"
        with open_source(f"rtsp://robot:p%40ss%20word@{place}?format=nv12&latency=0") as source:
            frame = next_frame(source)
            assert frame.format == "nv12" and frame.size == (320, 240)
            assert frame.age_ns(time.monotonic_ns()) > 0
            assert "robot" not in source.status.detail + source.name
            assert "latency=0 " in source.status.detail
        with pytest.raises(SourceError, match="check user name and password") as caught:
            open_source(f"rtsp://robot:wrong@{place}")
        assert "wrong" not in str(caught.value)
    finally:
        served.kill()


def test_motion_jpeg():
    with http_server() as port, open_source(f"http://127.0.0.1:{port}/a.mjpg?x=1.mjpg") as source:
        first, second = next_frame(source), next_frame(source)
        assert first.size == (160, 120) and second.image.mean() > first.image.mean()


def test_a_pipeline():
    size = "video/x-raw, width=64, height=48"
    with open_source(f"gst://videotestsrc is-live=true ! {size}") as source:
        assert source.live and next_frame(source).size == (64, 48)
    with open_source(f"gst://videotestsrc num-buffers=7 ! {size}") as source:
        assert [frame.sequence for frame in source] == list(range(7)) and not source.live
    with pytest.raises(SourceError, match='no element "nothing"'):
        open_source("gst://nothing ! videoconvert")
