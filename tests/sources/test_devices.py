"""Formats of V4L2 devices, with a kernel that stands in for a driver's answers."""

import errno
import fcntl
import struct

import pytest

from y7edge.errors import SourceError
from y7edge.sources import appsink, devices
from y7edge.sources.devices import check_device, formats_of, is_bayer, usual_codec

C920 = {
    "YUYV": ((640, 480), (1280, 720)),
    "MJPG": ((640, 480), (1280, 720), (1920, 1080)),
    "H264": ((1920, 1080),),
}


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """Answer the kernel's calls for the path that is returned."""
    path = tmp_path / "video0"
    path.touch()

    def make(formats, kind=1, stepwise=False):
        def ioctl(handle, request, data):
            index = struct.unpack_from("=I", data)[0]
            code = struct.unpack_from("=I", data, 4)[0]
            if request == 0xC0405602:  # VIDIOC_ENUM_FMT
                if code != kind or index >= len(formats):
                    raise OSError(errno.EINVAL, "")
                name = list(formats)[index].ljust(4).encode("latin-1")
                data[44:48] = name
            elif request == 0xC02C564A:  # VIDIOC_ENUM_FRAMESIZES
                sizes = formats[code.to_bytes(4, "little").decode("latin-1").strip()]
                if index >= len(sizes):
                    raise OSError(errno.EINVAL, "")
                struct.pack_into("=III", data, 8, 2 if stepwise else 1, *sizes[index])
            else:
                raise AssertionError(hex(request))
            return 0

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        return str(path)

    return make


@pytest.mark.parametrize("kind", [1, 9])
def test_formats_and_sizes(driver, kind):
    assert formats_of(driver(C920, kind)) == C920


def test_sizes_that_are_a_range_are_not_known(driver):
    assert formats_of(driver({"YUYV": ((16, 16),)}, stepwise=True)) == {"YUYV": ()}


def test_a_driver_that_does_not_end(driver):
    endless = {"MJPG": [(640, 480)] * 10_000}
    assert len(formats_of(driver(endless))["MJPG"]) == 256


def test_what_is_no_camera(tmp_path):
    assert formats_of("/dev/null") == {} and formats_of(str(tmp_path / "nothing")) == {}
    assert usual_codec("/dev/null", {}, (640, 480)) is None


@pytest.mark.parametrize(
    ("formats", "size", "codec"),
    [
        (C920, (0, 0), "mjpeg"),
        (C920, (1280, 0), "mjpeg"),
        ({"YUYV": ((640, 480),), "MJPG": ((1280, 720),)}, (640, 480), "raw"),
        ({"YUYV": (), "MJPG": ((1280, 720),)}, (800, 600), "raw"),
        ({"GREY": ((640, 480),), "RG10": ((640, 480),)}, (0, 0), "raw"),
        ({"HEVC": ((640, 480),), "H264": ((640, 480),)}, (0, 480), "h264"),
    ],
)
def test_the_codec_of_a_camera(formats, size, codec):
    assert usual_codec("/dev/video0", formats, size) == codec


def test_a_sensor_without_an_image_processor():
    with pytest.raises(SourceError, match=r"raw values of a sensor \(RG10, BA81\).*csi://0"):
        usual_codec("/dev/video0", {"RG10": ((1920, 1080),), "BA81": ()}, (0, 0))


def test_a_size_that_no_format_has():
    with pytest.raises(SourceError) as caught:
        usual_codec("/dev/video0", {"MJPG": ((640, 480), (1280, 720))}, (800, 0))
    assert str(caught.value) == "/dev/video0 has no size 800xany, found MJPG 640x480, 1280x720"


def test_the_pipeline_of_a_camera(driver):
    path = driver({"YUYV": ((640, 480),), "MJPG": ((1280, 720),)})
    assert appsink._with_codec(path, {"width": 640}) == {"width": 640, "codec": "raw"}
    assert appsink._with_codec(path, {"input-codec": "h264"}) == {"input-codec": "h264"}


@pytest.mark.parametrize(
    "code", ["RG10", "BG10", "GB12", "BA81", "pRAA", "pgCC", "aBA8", "GRBG", "BYR2", "GR16"]
)
def test_formats_of_sensors(code):
    assert is_bayer(code)


@pytest.mark.parametrize("code", ["MJPG", "YUYV", "NV12", "GREY", "H264", "UYVY", "BGR3", "RGB3"])
def test_formats_of_images(code):
    assert not is_bayer(code)


def test_the_device(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match=r"/dev/video987 does not exist, found "):
        check_device("/dev/video987")
    monkeypatch.setattr(devices.os, "access", lambda path, mode: False)
    with pytest.raises(SourceError, match=r"may not be read: sudo usermod -aG video \$USER"):
        check_device(str(tmp_path))
