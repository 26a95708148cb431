"""Launch strings, and the choice between GStreamer and OpenCV. GStreamer is not needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from y7edge.errors import ConfigError, RuntimeMissing, SourceError, Y7EdgeError
from y7edge.sources import launch as module
from y7edge.sources.address import url
from y7edge.sources.devices import device
from y7edge.sources.launch import choose, launch

ROOT = Path(__file__).parents[2]
JETSON = {"nvarguscamerasrc", "nvvidconv", "nvjpegdec", "nvv4l2decoder"}
SINK = "appsink name=y7edge-sink max-buffers=1 drop=true sync=false enable-last-sample=false"
QUEUE = (
    "queue name=y7edge-newest leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0"
)
TO_BGR = f"{QUEUE} ! videoconvert ! video/x-raw, format=(string)BGR ! {SINK}"
NVMM = (
    "video/x-raw(memory:NVMM), width=(int)1280, height=(int)720, framerate=(fraction)30/1, "
    "format=(string)NV12"
)
RTSP = (
    'rtspsrc name=y7edge-source location="rtsp://10.0.0.5:554/live?channel=1" latency=100 '
    "drop-on-latency=true protocols=tcp timeout=5000000 tcp-timeout=5000000"
)


def on_jetson(element, element_property=None):
    return True


def on_desktop(element, element_property=None):
    return element not in JETSON


def text(scheme, place, has=on_desktop, **options):
    return launch(scheme, place, options, has).text


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            text("csi", "0", on_jetson),
            f"nvarguscamerasrc name=y7edge-source sensor-id=0 ! {NVMM} ! nvvidconv flip-method=0 ! "
            f"video/x-raw, format=(string)NV12 ! {SINK}",
        ),
        (
            text(
                *("csi", "1", on_jetson),
                **{"format": "bgr", "flip": "rotate-180", "sensor_mode": 4, "wbmode": 0},
                **{"exposure": "13000,33000000", "gain": 4, "awblock": "true", "saturation": 1.5},
            ),
            "nvarguscamerasrc name=y7edge-source sensor-id=1 sensor-mode=4 wbmode=0 awblock=true "
            'exposuretimerange="13000 33000000" gainrange="4 4" saturation=1.5 ! '
            f"{NVMM} ! nvvidconv flip-method=2 ! video/x-raw, format=(string)BGRx ! {TO_BGR}",
        ),
        (
            text("v4l2", "/dev/video0", width=1280, height=720, fps=30),
            'v4l2src name=y7edge-source device="/dev/video0" ! capsfilter caps="image/jpeg, '
            "width=(int)1280, height=(int)720, framerate=(fraction)30/1; video/x-raw, "
            'width=(int)1280, height=(int)720, framerate=(fraction)30/1" ! decodebin ! '
            f"video/x-raw(ANY) ! {TO_BGR}",
        ),
        (
            text("v4l2", "0", on_jetson, codec="mjpeg", width=1920, height=1080, fps=29.97),
            'v4l2src name=y7edge-source device="/dev/video0" ! capsfilter caps="image/jpeg, '
            'width=(int)1920, height=(int)1080, framerate=(fraction)30000/1001" ! nvjpegdec ! '
            f"video/x-raw ! nvvidconv flip-method=0 ! video/x-raw, format=(string)NV12 ! {SINK}",
        ),
        (
            text("v4l2", "/dev/video0", codec="raw", flip="horizontal", format="nv12", height=480),
            'v4l2src name=y7edge-source device="/dev/video0" ! capsfilter caps="video/x-raw, '
            f'height=(int)480" ! {QUEUE} ! videoconvert ! video/x-raw, format=(string)NV12 ! '
            f"videoflip video-direction=horiz ! {SINK}",
        ),
        (
            text("rtsp", "10.0.0.5:554/live?channel=1"),
            f"{RTSP} ! application/x-rtp, media=(string)video ! decodebin ! video/x-raw(ANY) ! "
            f"{TO_BGR}",
        ),
        (
            text("rtsp", "10.0.0.5:554/live?channel=1", on_jetson, codec="h265"),
            f"{RTSP} ! rtph265depay ! h265parse ! nvv4l2decoder enable-max-performance=1 ! "
            f"nvvidconv flip-method=0 ! video/x-raw, format=(string)NV12 ! {SINK}",
        ),
        (
            text(
                *("rtsp", "u:p@10.0.0.5:554/live?channel=1", on_jetson),
                **{"codec": "h264", "decoder": "cpu", "rate": 5, "width": 640, "height": 360},
            ),
            f"{RTSP} ! rtph264depay ! h264parse ! avdec_h264 "
            f"! {QUEUE} ! videoscale ! video/x-raw, width=(int)640, height=(int)360 ! videoconvert "
            f"! video/x-raw, format=(string)BGR ! {SINK}",
        ),
        (
            text("rtsp", "[fe80::1]/x", on_jetson, width=640, height=360, flip="clockwise"),
            'rtspsrc name=y7edge-source location="rtsp://[fe80::1]/x" latency=100 '
            "drop-on-latency=true protocols=tcp timeout=5000000 tcp-timeout=5000000 ! "
            "application/x-rtp, media=(string)video ! decodebin ! video/x-raw(ANY) ! nvvidconv "
            "flip-method=3 ! video/x-raw, width=(int)360, height=(int)640, format=(string)NV12 ! "
            f"{SINK}",
        ),
        (
            text("rtp", "239.0.0.1:5000", on_jetson, codec="mjpeg", width=640, height=480, flip=2),
            'udpsrc name=y7edge-source address="239.0.0.1" port=5000 buffer-size=2097152 '
            'caps="application/x-rtp, media=(string)video, clock-rate=(int)90000, '
            'encoding-name=(string)JPEG" ! rtpjitterbuffer latency=100 drop-on-latency=true ! '
            "rtpjpegdepay ! nvjpegdec ! video/x-raw ! nvvidconv flip-method=2 ! video/x-raw, "
            f"width=(int)640, height=(int)480, format=(string)NV12 ! {SINK}",
        ),
        (
            text("rtp", "@:5000", latency=0),
            'udpsrc name=y7edge-source address="0.0.0.0" port=5000 buffer-size=2097152 '
            'caps="application/x-rtp, media=(string)video, clock-rate=(int)90000, '
            'encoding-name=(string)H264" ! rtpjitterbuffer latency=0 drop-on-latency=true ! '
            f"rtph264depay ! h264parse ! avdec_h264 ! {TO_BGR}",
        ),
        (
            text("http", "cam.local:8080/stream?topic=/image", timeout=2),
            'souphttpsrc name=y7edge-source location="http://cam.local:8080/stream?topic=/image" '
            "is-live=true do-timestamp=true timeout=2 ! multipartdemux ! "
            f"image/jpeg ! jpegdec ! {TO_BGR}",
        ),
        (text("gst", " videotestsrc\n  is-live=true !"), f"videotestsrc is-live=true ! {TO_BGR}"),
        (
            text("gst", "a ! video/x-raw, format=NV12"),
            f"a ! video/x-raw, format=NV12 ! {QUEUE} ! videoconvert ! "
            f"video/x-raw, format=(string)NV12 ! {SINK}",
        ),
        (text("gst", "videotestsrc ! appsink name=x"), "videotestsrc ! appsink name=x"),
    ],
)
def test_golden_strings(found, expected):
    assert found == expected


def test_a_missing_decoder_is_replaced():
    def without(*names):
        return lambda element, element_property=None: element not in names

    found = text("v4l2", "0", without("nvjpegdec"), codec="mjpeg")
    assert "nvv4l2decoder mjpeg=1 ! nvvidconv" in found
    found = text("v4l2", "0", without("nvjpegdec", "nvv4l2decoder"), codec="mjpeg")
    assert "! jpegdec ! nvvidconv" in found
    found = text("rtsp", "h/x", without("avdec_h264", "h264parse", *JETSON), codec="h264")
    assert "! rtph264depay ! openh264dec ! queue" in found
    with pytest.raises(
        RuntimeMissing, match="codec=h264 needs one of avdec_h264, openh264dec: sudo"
    ):
        text("rtsp", "h/x", without("avdec_h264", "openh264dec", *JETSON), codec="h264")


@pytest.mark.parametrize(
    ("scheme", "element", "message"),
    [
        ("csi", "nvarguscamerasrc", "csi:// is the camera connector of a Jetson"),
        ("v4l2", "v4l2src", "no v4l2src here: sudo apt install gstreamer1.0-plugins-good"),
        ("rtsp", "decodebin", "no decodebin here: sudo apt install gstreamer1.0-plugins-base"),
    ],
)
def test_a_missing_element_is_named_with_its_package(monkeypatch, scheme, element, message):
    monkeypatch.setattr(module.jetson, "find", lambda: None)
    place = {"csi": "0", "v4l2": "0", "rtsp": "h/x"}[scheme]
    with pytest.raises(RuntimeMissing, match=message):
        text(scheme, place, lambda name, _=None: name != element)
    if scheme == "csi":
        monkeypatch.setattr(module.jetson, "find", lambda: object())
        with pytest.raises(RuntimeMissing, match="needs nvarguscamerasrc of JetPack"):
            text(scheme, place, lambda name, _=None: name != element)


def test_a_property_that_this_release_lacks():
    def has(element, element_property=None):
        return element_property != "awblock"

    with pytest.raises(SourceError, match="this release of nvarguscamerasrc has no awblock"):
        text("csi", "0", has, awblock="true")


def test_the_rate_of_a_camera_is_set_and_that_of_a_stream_is_a_limit():
    for scheme, place in (("rtsp", "h/x"), ("http", "h/x"), ("rtp", "@:5000")):
        made = launch(scheme, place, {"rate": "7.5"}, on_desktop)
        assert made.limit == 7.5 and "15/2" not in made.text
    with pytest.raises(ConfigError, match="needs both options width and height"):
        launch("rtsp", "h/x", {"width": 640}, on_desktop)
    made = launch("csi", "0", {"rate": "7.5"}, on_jetson)
    assert made.limit is None and "framerate=(fraction)15/2" in made.text


@pytest.mark.parametrize(
    ("transport", "protocols"),
    [("tcp", "tcp"), ("udp", "udp-mcast+udp"), ("auto", "tcp+udp-mcast+udp")],
)
def test_transports(transport, protocols):
    found = text("rtsp", "h/x", transport=transport, timeout=2.5)
    assert f" protocols={protocols} timeout=2500000 tcp-timeout=2500000 !" in found


def test_credentials_are_not_in_the_string():
    made = launch("rtsp", "ro%40bot:p%3Ass@h:8554/x", {}, on_desktop)
    assert made.secrets == {"user-id": "ro@bot", "user-pw": "p:ss"}
    assert 'location="rtsp://h:8554/x"' in made.text
    for shown in (made.text, repr(made)):
        assert "bot" not in shown and "ss" not in shown.replace("-", "").split("address")[0]


@pytest.mark.parametrize(
    ("scheme", "place"),
    [
        *(("csi", "x"), ("csi", "0 ! filesink"), ("csi", "-1"), ("csi", "٣"), ("ftp", "h/x")),
        *(("v4l2", "/dev/../etc/passwd"), ("v4l2", "/etc/passwd"), ("v4l2", '/dev/a" ! x')),
        *(("v4l2", "1234"), ("v4l2", "")),
        *(("rtsp", ""), ("rtsp", "/x"), ("rtsp", 'h/x" ! filesink location="y')),
        *(("rtsp", "h:99999/x"), ("rtsp", "h/a b"), ("rtsp", "h/\x00"), ("rtsp", "h\\x")),
        *(("rtsp", "u:%ff@h/x"), ("rtsp", "[::1/x")),
        *(("rtp", "5000"), ("rtp", "@:0"), ("rtp", "@:70000"), ("rtp", 'h" !:5000')),
        *(("gst", " "), ("gst", "videotestsrc \x1b[2J"), ("http", "h ost/x")),
    ],
)
def test_places_that_are_refused(scheme, place):
    with pytest.raises(SourceError) as caught:
        launch(scheme, place, {}, on_jetson)
    assert "passwd" in place or "u:" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        *(
            ("0", "/dev/video0"),
            ("video12", "/dev/video12"),
            ("/dev/front_left", "/dev/front_left"),
        ),
        ("/dev/v4l/by-id/usb-046d_C920-video-index0", "/dev/v4l/by-id/usb-046d_C920-video-index0"),
    ],
)
def test_devices(place, path):
    assert device(place) == path


def test_urls():
    assert url("http", "u@h/x?a=b#c") == ("http://h/x?a=b#c", {"user-id": "u", "user-pw": ""})
    assert url("rtsp", "[::1]:554/x") == ("rtsp://[::1]:554/x", {})


def test_gstreamer_is_chosen_if_it_is_usable(monkeypatch):
    monkeypatch.setattr(module, "gstreamer_problem", lambda: None)
    asked = {"scheme": "v4l2", "place": "/dev/video0"}
    found = choose("v4l2", "/dev/video0", {"fps": 30, "input-backend": "auto"})
    assert found == ("appsink", {**asked, "options": {"fps": "30"}})
    kind, options = choose("v4l2", "/dev/video0", {"backend": "opencv"})
    assert (kind, options["why"]) == ("video_capture", "backend=opencv")


def test_opencv_is_chosen_without_gstreamer(monkeypatch):
    monkeypatch.setattr(module, "gstreamer_problem", lambda: "PyGObject is not installed: x")
    monkeypatch.setattr(module.jetson, "find", lambda: None)
    kind, options = choose("rtsp", "h/x", {"transport": "udp", "format": "bgr"})
    assert kind == "video_capture"
    assert options["options"] == {"transport": "udp", "format": "bgr"}
    assert options["why"] == "PyGObject is not installed: x"
    for scheme, place, given, kind, message in (
        ("csi", "0", {}, RuntimeMissing, "camera connector of a Jetson, and this machine is not"),
        ("v4l2", "0", {"backend": "gstreamer"}, RuntimeMissing, "with GStreamer: PyGObject"),
        ("rtsp", "h/x", {"latency": 5}, ConfigError, "no option latency without GStreamer: PyG"),
        ("rtsp", "h/x", {"codec": "mjpeg"}, ConfigError, "no option codec without GStreamer"),
        ("rtsp", "h/x", {"format": "nv12"}, ConfigError, "no option format without GStreamer"),
        ("v4l2", "0", {"codec": "h264"}, ConfigError, "codec=h264 needs GStreamer"),
        ("v4l2", "0", {"backend": "ffmpeg"}, ConfigError, "option backend is 'ffmpeg'"),
    ):
        with pytest.raises(kind, match=message):
            choose(scheme, place, given)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(module.jetson, "find", lambda: object())
    with pytest.raises(RuntimeMissing, match="csi:// needs GStreamer: PyGObject"):
        choose("csi", "0", {})
    with pytest.raises(RuntimeMissing, match=r"or OpenCV: pip install \"y7edge\[opencv\]\""):
        choose("rtsp", "h/x", {})


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("gi/__init__.py", "from . import _gi", "PyGObject is that of another Python, or incompl"),
        ("gi.py", "", "gi.py hides PyGObject: rename it"),
        ("gi.py", "raise ModuleNotFoundError(name='gi')", "PyGObject is not installed: sudo apt"),
    ],
)
def test_why_gstreamer_cannot_be_used(tmp_path, file, text, message):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    code = "from y7edge.sources.launch import gstreamer_problem; print(gstreamer_problem())"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert message in found.stdout, found.stderr


def test_errors_are_found_before_a_process_is_started():
    for scheme, place, options in (("csi", "0", {"width": -1}), ("rtsp", "h x", {})):
        with pytest.raises(Y7EdgeError):
            choose(scheme, place, options)
