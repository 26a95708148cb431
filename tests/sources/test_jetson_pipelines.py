"""Pipelines of a Jetson with elements that stand in for NVIDIA's; each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources.gstreamer import require
from y7edge.sources import supervisor

require(
    *("videotestsrc", "videoconvert", "videoscale", "videoflip", "jpegdec", "v4l2src", "rtspsrc"),
    *("decodebin", "avdec_h264", "avdec_h265", "avdec_mpeg4", "rtph265depay", "rtpmp4vdepay"),
    *("udpsrc", "rtpjitterbuffer", "souphttpsrc", "multipartdemux"),
)

HERE = Path(__file__).parent
PREAMBLE = """
import sys, json, time
sys.path.insert(0, {here!r})
import jetson_elements
from y7edge.errors import Y7EdgeError
from y7edge.sources.appsink import grabber, has
from y7edge.sources.launch import launch
from gi.repository import Gst
"""


def run(code):
    """Run code after ``PREAMBLE``; return what it prints, parsed as JSON."""
    whole = PREAMBLE.format(here=str(HERE)) + code
    done = subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CAPTURE = """
jetson_elements.register()
jetson_elements.with_metadata = {metadata}
camera = grabber({{"scheme": "csi", "place": "0", "options": {options}}})
frames = []
for _ in range(4):
    captured = camera.grab(20)
    now = time.monotonic_ns()
    frames.append([captured.size, captured.format, captured.clock, now - captured.timestamp_ns])
values = camera._pipeline.get_by_name("y7edge-source").values
camera.close()
print(json.dumps([frames, values, camera.live]))
"""


def test_csi_gives_nv12_with_the_time_of_the_sensor():
    frames, values, live = run(CAPTURE.format(metadata=True, options={}))
    assert live and values == {"sensor-id": 0}
    assert all(frame[:3] == [[1280, 720], "nv12", "sensor"] for frame in frames)
    assert all(frame[3] >= 7_000_000 for frame in frames)  # exposed before the buffer left


def test_csi_without_metadata_has_the_time_of_arrival():
    options = {"flip": "clockwise", "format": "bgr", "width": 640, "height": 360, "fps": 60}
    options |= {"sensor_mode": 2, "exposure": "13000,20000000", "gain": "1,8", "wbmode": 3}
    frames, values, _ = run(CAPTURE.format(metadata=False, options=options))
    assert all(frame[:3] == [[360, 640], "bgr", "arrival"] for frame in frames)
    assert values == {
        **{"sensor-id": 0, "sensor-mode": 2, "exposuretimerange": "13000 20000000"},
        **{"gainrange": "1 8", "wbmode": 3},
    }


def test_all_properties_exist_in_the_release_that_was_recorded():
    every = {
        **{"sensor_mode": 1, "exposure": "1,2", "gain": 1, "digital_gain": 1, "wbmode": 1},
        **{"exposure_compensation": -2, "aelock": True, "awblock": False, "aeantibanding": 3},
        **{"tnr_mode": 2, "tnr_strength": -1, "ee_mode": 1, "ee_strength": 0.5, "saturation": 2},
    }
    found = run(f"""
jetson_elements.register()
every = {every}
pipeline = Gst.parse_launch(launch("csi", "3", every, has).text)
print(json.dumps(pipeline.get_by_name("y7edge-source").values))
""")
    assert found == {
        **{"sensor-id": 3, "sensor-mode": 1, "exposuretimerange": "1 2", "gainrange": "1 1"},
        **{"ispdigitalgainrange": "1 1", "wbmode": 1, "exposurecompensation": -2.0},
        **{"aelock": True, "awblock": False, "aeantibanding": 3, "tnr-mode": 2, "ee-mode": 1},
        **{"tnr-strength": -1.0, "ee-strength": 0.5, "saturation": 2.0},
    }


ADDRESSES = [
    ("v4l2", "/dev/video0", {}),
    ("v4l2", "/dev/video0", {"codec": "mjpeg", "fps": "29.97", "width": 1280}),
    ("v4l2", "/dev/video0", {"codec": "raw", "format": "bgr"}),
    ("v4l2", "/dev/video0", {"codec": "h264", "decoder": "cpu"}),
    ("rtsp", "127.0.0.1:8554/x?a=b", {}),
    (
        "rtsp",
        "127.0.0.1:8554/x",
        {"codec": "h265", "flip": "horizontal", "width": 640, "height": 360},
    ),
    ("rtsp", "127.0.0.1:8554/x", {"codec": "mpeg4", "rate": 5, "transport": "auto"}),
    ("rtsp", "127.0.0.1:8554/x", {"decoder": "cpu"}),
    ("rtp", "@:5000", {"codec": "vp9", "format": "bgr"}),
    ("http", "127.0.0.1/x", {}),
]


@pytest.mark.parametrize("without", [[], ["nvjpegdec"], ["nvjpegdec", "nvv4l2decoder"]])
def test_every_string_can_be_parsed(without):
    found = run(f"""
jetson_elements.register(*{without})
texts = [launch(*address, has).text for address in {ADDRESSES}]
for text in texts:
    Gst.parse_launch(text)
print(json.dumps(texts))
""")
    assert len(found) == len(ADDRESSES)
    assert ("nvjpegdec" in found[1]) == (not without)
    assert ("nvv4l2decoder" in found[5]) == (len(without) < 2)


def test_a_dead_camera_has_advice():
    found = run("""
jetson_elements.register()
camera = grabber({"scheme": "csi", "place": "0", "options": {}})
camera.grab(20)
source = camera._pipeline.get_by_name("y7edge-source")
from gi.repository import GLib
fault = GLib.Error.new_literal(Gst.stream_error_quark(), "CANCELLED", Gst.StreamError.FAILED)
source.post_message(Gst.Message.new_error(source, fault, "Argus Error Status"))
try:
    while True:
        camera.grab(5)
except Y7EdgeError as error:
    print(json.dumps(str(error)))
""")
    assert found.startswith("CANCELLED (Argus Error Status): test it alone with nvgst")
    assert supervisor._hint("csi://0") in found  # it is not repeated
