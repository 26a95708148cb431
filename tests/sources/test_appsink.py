"""Capture with real GStreamer: pixels, times, drops, ends and faults."""

import contextlib
import itertools
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sources.gstreamer import require

require("videotestsrc", "videoconvert", "appsink", "jpegdec", "decodebin", "valve", "concat")

from gi.repository import GLib, Gst  # noqa: E402

from y7edge.detect.preprocess import nv12_to_bgr  # noqa: E402
from y7edge.errors import RuntimeMissing, SourceError, SourceTimeout, Y7EdgeError  # noqa: E402
from y7edge.sources.appsink import grabber, has  # noqa: E402
from y7edge.sources.buffers import check_addresses  # noqa: E402
from y7edge.sources.launch import launch  # noqa: E402
from y7edge.sources.uri import open_source  # noqa: E402

LIVE = "videotestsrc is-live=true ! video/x-raw, format=NV12, width=320, height=240"


@pytest.fixture
def opened():
    """Open a gst:// pipeline, which is closed after the test."""
    made = []

    def open_pipeline(place, **options):
        made.append(grabber({"scheme": "gst", "place": place, "options": options}))
        return made[-1]

    yield open_pipeline
    for pipeline in made:
        pipeline.close()


def image_of(captured):
    """Copy the planes: (H, W, 3), or NV12 (3 H / 2, W)."""
    rows = np.concatenate(captured.planes)
    width, height = captured.size
    return rows if captured.format == "nv12" else rows.reshape(height, width, 3)


def test_padded_rows_of_nv12(opened):
    camera = (
        "videotestsrc num-buffers=1 pattern=smpte ! "
        "video/x-raw, width=1278, height=718, colorimetry=bt601, format="
    )
    captured = opened(f"{camera}NV12").grab(10)
    assert captured.size == (1278, 718)
    luma, chroma = captured.planes
    assert luma.shape == (718, 1278) and chroma.shape == (359, 1278)
    assert luma.strides == chroma.strides == (1280, 1)
    found = nv12_to_bgr(image_of(captured)).astype(int)
    expected = image_of(opened(f"{camera}BGR").grab(10)).astype(int)
    # Random noise, which is one of the test image's fields, has no chroma of its own per pixel.
    assert np.median(np.abs(found - expected), axis=(0, 1)).max() <= 3
    assert np.abs(found - expected)[:400].mean() < 3


@pytest.mark.parametrize("layout", ["BGR", "RGB"])
def test_padded_rows_of_colours(opened, layout):
    camera = "videotestsrc num-buffers=1 pattern=red ! video/x-raw, width=639, height=37, format="
    captured = opened(f"{camera}{layout} ! appsink").grab(10)
    assert captured.format == layout.lower()
    assert captured.planes[0].shape == (37, 639 * 3) and captured.planes[0].strides == (1920, 1)
    red = [0, 0, 255] if layout == "BGR" else [255, 0, 0]
    assert (image_of(captured) == red).all()


def test_jpeg_has_the_same_levels_in_bgr_and_nv12(opened, tmp_path):
    ramp = np.zeros((64, 256, 3), np.uint8)
    ramp[:] = np.arange(256)[None, :, None]
    cv2.imwrite(str(tmp_path / "ramp.jpg"), ramp, [cv2.IMWRITE_JPEG_QUALITY, 98])
    expected = cv2.imread(str(tmp_path / "ramp.jpg")).astype(int)
    file = f"filesrc location={tmp_path}/ramp.jpg ! jpegdec"
    assert np.abs(image_of(opened(file).grab(10)) - expected).max() <= 6
    found = nv12_to_bgr(image_of(opened(file, format="nv12").grab(10)))
    assert np.abs(found - expected).max() <= 6


def test_times_are_those_of_the_monotonic_clock(opened):
    pipeline = opened(LIVE)
    assert pipeline.live and pipeline.backend == "gstreamer"
    # Not that of a sound card, if the pipeline has one.
    assert pipeline._pipeline.flags & Gst.PipelineFlags.FIXED_CLOCK
    frames = []
    for _ in range(8):
        before = time.monotonic_ns()
        captured = pipeline.grab(10)
        frames.append((captured.timestamp_ns, captured.skipped))
        assert captured.clock == "driver" and captured.rate == 30
        assert captured.timestamp_ns <= time.monotonic_ns()
        assert captured.timestamp_ns > before - 2_000_000_000
    steps = [
        (b[0] - a[0]) / (1 + b[1]) for a, b in itertools.pairwise(frames)
    ]  # per frame of the camera
    assert min(steps) > 33e6 and max(steps) < 34e6


def test_a_slow_reader_gets_the_newest_frame(opened):
    pipeline = opened(LIVE)
    frames = [pipeline.grab(10)]
    for _ in range(2):
        frames.append(pipeline.grab(10))
        began = time.monotonic_ns()
        time.sleep(0.6)
        frames.append(pipeline.grab(10))
        # Not one of the first frames after the pause began.
        assert frames[-1].timestamp_ns > began + 200_000_000
    made = round((frames[-1].timestamp_ns - frames[0].timestamp_ns) / 1e9 * 30)
    skipped = sum(captured.skipped for captured in frames[1:])
    assert made == len(frames[1:]) + skipped
    assert skipped >= 15


JPEG = "video/x-raw, format=I420, width=1280, height=720, framerate=30/1 ! jpegenc"
YUY2 = "video/x-raw, format=YUY2, width=1280, height=720, framerate=15/2"


@pytest.mark.parametrize(
    ("camera", "options"),
    [
        (JPEG, {"codec": "mjpeg"}),
        (JPEG, {"fps": 30}),
        (JPEG, {"width": 1280, "format": "nv12"}),
        (YUY2, {"codec": "raw", "format": "nv12"}),
        (YUY2, {}),
        (YUY2, {"rate": "7.5", "height": 720, "flip": "rotate-180"}),
    ],
)
def test_pipelines_of_usb_cameras(opened, camera, options):
    """All but the source is that of a camera."""
    text = launch("v4l2", "/dev/video0", options, has).text
    own = 'v4l2src name=y7edge-source device="/dev/video0"'
    assert text.startswith(own)
    pipeline = opened(text.replace(own, f"videotestsrc is-live=true pattern=red ! {camera}"))
    captured = pipeline.grab(20)
    assert captured.size == (1280, 720) and captured.clock == "driver"
    assert captured.format == options.get("format", "bgr")
    image = image_of(captured)
    pixels = nv12_to_bgr(image) if captured.format == "nv12" else image
    assert (np.abs(np.median(pixels, axis=(0, 1)) - [0, 0, 255]) < 40).all()


@pytest.mark.parametrize("sink", ["", " ! appsink"])
def test_all_frames_of_a_file(opened, sink):
    began = time.monotonic()
    pipeline = opened(
        f"videotestsrc num-buffers=600 ! video/x-raw, format=BGR, width=16, height=16{sink}"
    )
    assert not pipeline.live
    time.sleep(0.2)  # nothing is dropped meanwhile
    times = []
    while captured := pipeline.grab(10):
        assert captured.clock == "media" and not captured.skipped
        times.append(captured.timestamp_ns)
    assert len(times) == 600 and times[0] == 0
    assert max(np.abs(np.diff(times) - 1e9 / 30)) <= 1
    assert time.monotonic() - began < 15  # of a video of 20 s: it is not played
    assert pipeline.grab(0) is None


def test_the_size_changes(opened):
    small, large = "width=64, height=48", "width=1278, height=718"
    pipeline = opened(
        f"videotestsrc num-buffers=3 ! video/x-raw, {small} ! c. "
        f"videotestsrc num-buffers=3 ! video/x-raw, {large} ! c. concat name=c"
    )
    sizes = []
    while captured := pipeline.grab(10):
        sizes.append(captured.size)
        assert image_of(captured).shape == (*captured.size[::-1], 3)
    assert sizes == [(64, 48)] * 3 + [(1278, 718)] * 3


def test_4k_is_read_or_counted(opened):
    pipeline = opened(
        "videotestsrc is-live=true ! "
        "video/x-raw, format=NV12, width=3840, height=2160, framerate=60/1"
    )
    first = pipeline.grab(20).timestamp_ns
    frames = [pipeline.grab(20) for _ in range(5)]
    assert frames[0].size == (3840, 2160)
    made = round((frames[-1].timestamp_ns - first) / 1e9 * 60)
    assert made == sum(1 + captured.skipped for captured in frames)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("videotestsrc ! nothing", 'not a pipeline of GStreamer: no element "nothing"'),
        ("videotestsrc size=5", 'no property "size" in element "videotestsrc"'),
        ("videotestsrc ! fakesink", "could not link fakesink0"),
        ("videotestsrc ! appsink videotestsrc ! appsink", "needs one appsink, found 2"),
        ("filesrc location=/nothing/here ! decodebin", 'No such file "/nothing/here"'),
        ("rtspsrc location=rtsp://bob:topsecret@127.0.0.1:1/x ! decodebin", "Failed to connect"),
        ("videotestsrc ! appsink caps=video/x-raw,format=GRAY8", "ends in GRAY8, expected NV12"),
        ("videotestsrc ! video/x-raw, format=GRAY8 ! appsink", "must end in raw video"),
        ("videotestsrc ! video/x-raw, format=NV12, width=33, height=8", "NV12 of 33x8 is not supp"),
        ("videotestsrc ! appsink caps=audio/x-raw", "could not link|not-negotiated"),
        ("videotestsrc is-live=true num-buffers=1 ! appsink", "the camera ended the stream"),
    ],
)
def test_faults_are_one_line(opened, place, message):
    with pytest.raises(SourceError, match=message) as caught:
        pipeline = opened(place)
        for _ in range(3):
            pipeline.grab(10)
    assert "\n" not in str(caught.value)
    assert "bob" not in str(caught.value) and "topsecret" not in str(caught.value)


def test_a_corrupted_file(opened, tmp_path):
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(100_000))
    with pytest.raises(SourceError, match="determine type of stream"):
        opened(f"filesrc location={tmp_path}/noise ! decodebin")


def test_missing_plugins(monkeypatch, tmp_path):
    """With PyGObject and no plugins; GStreamer reads the variables in a process of its own."""
    monkeypatch.setenv("GST_PLUGIN_SYSTEM_PATH_1_0", str(tmp_path))
    monkeypatch.setenv("GST_REGISTRY", str(tmp_path / "registry"))
    package = "sudo apt install gstreamer1.0-plugins"
    with pytest.raises(
        RuntimeMissing, match=f"no rtspsrc here: {package}-good, or add backend=opencv"
    ):
        open_source("rtsp://127.0.0.1:1/x")
    with pytest.raises(RuntimeMissing, match=f"no videoconvert here: {package}-base$"):
        open_source("gst://videotestsrc")


def test_a_missing_decoder(opened):
    pipeline = opened(LIVE)
    structure = Gst.Structure.from_string('missing-plugin, name=(string)"H.265 decoder";')[0]
    source = pipeline._pipeline.get_by_name("y7edge-newest")
    source.post_message(Gst.Message.new_element(source, structure))
    fault = GLib.Error.new_literal(Gst.stream_error_quark(), "no", Gst.StreamError.CODEC_NOT_FOUND)
    source.post_message(Gst.Message.new_error(source, fault, "details"))
    with pytest.raises(RuntimeMissing, match=r"no H\.265 decoder: sudo apt install gstreamer"):
        pipeline.grab(10)


def test_no_frame_in_time(opened):
    pipeline = opened(f"{LIVE} ! valve name=valve")
    pipeline._pipeline.get_by_name("valve").set_property("drop", True)
    with contextlib.suppress(SourceTimeout):  # what had passed the valve
        while True:
            pipeline.grab(0.3)
    with pytest.raises(SourceTimeout, match=r"no frame within 0\.2 s"):
        pipeline.grab(0.2)
    pipeline._pipeline.get_by_name("valve").set_property("drop", False)
    assert pipeline.grab(10).size == (320, 240)


def test_closing():
    pipeline = grabber({"scheme": "gst", "place": LIVE, "options": {}})
    pipeline.grab(10)
    inner = pipeline._pipeline
    ended = []
    inner.get_bus().set_sync_handler(
        lambda bus, message: ended.append(message.type) or Gst.BusSyncReply.PASS
    )
    began = time.monotonic()
    pipeline.close()
    assert time.monotonic() - began < 5
    assert Gst.MessageType.EOS in ended  # or nvargus-daemon would keep the session
    assert inner.get_state(0)[1] == Gst.State.NULL
    pipeline.close()
    assert pipeline.grab(0) is None


def test_a_thread_can_run_while_a_frame_is_waited_for(opened):
    pipeline = opened(f"{LIVE} ! valve name=valve")
    pipeline._pipeline.get_by_name("valve").set_property("drop", True)
    count = itertools.count()
    stop = threading.Event()

    def work():
        while not stop.wait(0.001):
            next(count)

    thread = threading.Thread(target=work)
    thread.start()
    with pytest.raises(SourceTimeout):
        while True:
            pipeline.grab(0.5)
    stop.set()
    thread.join()
    assert next(count) > 20


def test_an_address_that_is_not_known():
    class Other:
        def __hash__(self):
            return 12345

    check_addresses(Gst.Buffer.new())
    with pytest.raises(RuntimeMissing, match="PyGObject does not give access"):
        check_addresses(Other())


def test_has():
    assert has("videoflip") and has("videoflip", "video-direction")
    assert not has("videoflip", "nothing") and not has("nothing") and not has("nothing", "x")


URLS = st.text(st.sampled_from("""ab1.:/?#[]@!$&'()*+,;=%"\\ {}<>|\n"""), max_size=25)


@settings(max_examples=80, deadline=None)
@given(URLS)
def test_no_place_adds_an_element(rest):
    try:
        made = launch("rtsp", f"host/{rest}", {}, has)
    except Y7EdgeError:
        return
    pipeline = Gst.parse_launch(made.text)
    elements = pipeline.iterate_elements()
    names = []
    while (step := elements.next())[0] == Gst.IteratorResult.OK:
        names.append(step[1].get_factory().get_name())
    # The caps between elements whose pads appear later are no elements.
    expected = ["rtspsrc", "decodebin", "queue", "videoconvert", "capsfilter", "appsink"]
    assert sorted(names) == sorted(expected)
    source = pipeline.get_by_name("y7edge-source")
    assert source.get_property("location") == f"rtsp://host/{rest}"


def test_exceptions_of_libraries_that_are_loaded_later():
    code = (
        "from y7edge.sources.appsink import load\n"
        "load()\n"
        "from matplotlib.backends import backend_agg\n"  # catches an exception of C++ on import
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
