"""What people type for a source."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from y7edge.errors import ConfigError, SourceError, Y7EdgeError
from y7edge.sources.address import SCHEMES, Address, parse, without_credentials
from y7edge.text import is_printable


@pytest.mark.parametrize(
    ("uri", "scheme", "place", "options", "name"),
    [
        ("csi://0", "csi", "0", {}, "csi://0"),
        ("CSI://1?sensor_mode=2&flip=none", "csi", "1", {"sensor_mode": "2", "flip": "none"}, None),
        ("v4l2:///dev/video3", "v4l2", "/dev/video3", {}, "v4l2:///dev/video3"),
        ("v4l2://3", "v4l2", "/dev/video3", {}, "v4l2:///dev/video3"),
        ("/dev/video0?width=640", "v4l2", "/dev/video0", {"width": "640"}, "v4l2:///dev/video0"),
        ("/dev/v4l/by-id/usb-a", "v4l2", "/dev/v4l/by-id/usb-a", {}, None),
        ("/dev/null", "v4l2", "/dev/null", {}, None),  # a device that udev gave another name
        ("0", "v4l2", "/dev/video0", {}, "v4l2:///dev/video0"),
        ("12?rate=30", "v4l2", "/dev/video12", {"rate": "30"}, None),
        (2, "v4l2", "/dev/video2", {}, "v4l2:///dev/video2"),
        ("rtsp://host/x", "rtsp", "host/x", {}, "rtsp://host/x"),
        ("rtsp://u:p@host:554/x?latency=0", "rtsp", "u:p@host:554/x", {"latency": "0"}, None),
        ("rtsp://[fe80::1]:554/x", "rtsp", "[fe80::1]:554/x", {}, "rtsp://[fe80::1]:554/x"),
        ("rtsp://h/stream@1", "rtsp", "h/stream@1", {}, "rtsp://h/stream@1"),
        (
            "rtsp://h/cam/realmonitor?channel=1&latency=5&subtype=0",
            "rtsp",
            "h/cam/realmonitor?channel=1&subtype=0",
            {"latency": "5"},
            "rtsp://h/cam/realmonitor?channel=1&subtype=0",
        ),
        ("rtsps://u:p@h/x?latency=5", "rtsps", "u:p@h/x", {"latency": "5"}, "rtsps://h/x"),
        ("http://h/v?width=640#rate=5", "http", "h/v?width=640", {"rate": "5"}, None),
        ("rtsp://h/x?latncy=0#", "rtsp", "h/x?latncy=0", {}, "rtsp://h/x?latncy=0"),
        ("http://h/v?resolution=640x480&fps=5", "http", "h/v?resolution=640x480&fps=5", {}, None),
        ("rtsp://h/x?input-codec=h265", "rtsp", "h/x", {"input_codec": "h265"}, None),
        ("http://h/v?width=640#", "http", "h/v?width=640", {}, "http://h/v?width=640"),
        ("rtp://@:1234?codec=h265", "rtp", "@:1234", {"codec": "h265"}, "rtp://@:1234"),
        ("rtp://239.0.0.1:5000", "rtp", "239.0.0.1:5000", {}, None),
        ("gst://videotestsrc ! x?a=b", "gst", "videotestsrc ! x?a=b", {}, None),
        ('gst://a !\n  b x="1\t2"', "gst", 'a !\n  b x="1\t2"', {}, 'gst://a !   b x="1 2"'),
        ("gst://x264enc key-int-max=30 ! a", "gst", "x264enc key-int-max=30 ! a", {}, None),
        ("test://pattern?fps=5&fault=stall", "test", "pattern", {"fps": "5", "fault": "stall"}, ""),
        ("replay://a/b?speed=1", "replay", "a/b", {"speed": "1"}, "replay://a/b"),
        ("file://x.mp4", "file", "x.mp4", {}, "x.mp4"),
        ("file:///a/x%20y.mp4?loop=2", "file", "/a/x y.mp4", {"loop": "2"}, "/a/x y.mp4"),
        ("file://localhost/a/x.mp4", "file", "/a/x.mp4", {}, "/a/x.mp4"),
        ("x.mp4?loop=-1&rate=5", "file", "x.mp4", {"loop": "-1", "rate": "5"}, "x.mp4"),
        ("images/a?.jpg", "file", "images/a?.jpg", {}, "images/a?.jpg"),
        ("C:\\x.mp4", "file", "C:\\x.mp4", {}, None),
        (Path("rtsp://x?y=1"), "file", "rtsp:/x?y=1", {}, None),
        (Path("0"), "file", "0", {}, "0"),
    ],
)
def test_addresses(
    uri: Any,
    scheme: str,
    place: str,
    options: dict[str, str],
    name: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse(uri)
    assert (found.scheme, found.place, dict(found.options)) == (scheme, place, options)
    if name:
        assert found.name == name


@pytest.mark.parametrize(
    "name",
    [
        *("0", "a?loop=1", "a?.jpg", "a#b.png", "a%20b.png", "50%", "a:b", "rtsp:", "-1", "*.png"),
        *("x y", "\x1b[31m.png", "a\nb.png", os.fsdecode(b"\xff.png"), "?", "[a].png", "file:x"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "file://{}", "file://{}?loop=2", "{}?loop=2", "./{}"])
def test_a_file_that_exists_is_meant(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    found = parse(form.format(name))
    assert (found.scheme, os.path.normpath(found.place)) == ("file", name)
    assert dict(found.options) == ({"loop": "2"} if "loop=2" in form else {})
    assert is_printable(found.name)


def test_a_file_whose_name_is_percent_encoded(tmp_path: Path) -> None:
    (tmp_path / "ä %?.png").touch()
    assert parse(f"file://{tmp_path}/%C3%A4%20%25%3F.png").place == str(tmp_path / "ä %?.png")
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    assert os.path.lexists(parse(f"file://{tmp_path}/%FF.png?loop=1").place)
    (tmp_path / "%41").touch()
    (tmp_path / "A").touch()
    assert parse(f"file://{tmp_path}/%41").place.endswith("%41")  # what exists is meant literally


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("rstp://host/x", "rstp://: unknown kind of source, did you mean 'rtsp'"),
        ("webrtc://@:1234/x", "unknown kind of source"),
        ("rtsp:/host/x", "expected rtsp:// with two slashes"),
        ("csi:0", "expected csi:// with two slashes"),
        ("csi://a", "expected the number of a sensor"),
        ("rtsp:///x", "expected a host"),
        ("rtsp://host:99999/x", "expected host:port"),
        ("rtsp://ho st/x", "expected host:port"),
        ("rtsp://host/x\r\nHeader: y", "control characters"),
        ("gst://videotestsrc\x1b ! x", "control characters"),
        ("", "the source is empty"),
        ("a\0b", "cannot contain NUL"),
        ("rtsp://" + "x" * 20_000, "20,007 characters: expected at most 16,384"),
    ],
)
def test_addresses_that_are_refused(uri: str, problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        parse(uri)


@pytest.mark.parametrize(
    ("uri", "options", "problem"),
    [
        ("csi://0?width", {}, "expected options as name=value"),
        ("csi://0?=3", {}, "expected options as name=value"),
        ("csi://0?width=3&width=4", {}, "option width is given twice"),
        ("csi://0?width=3", {"width": 4}, "option width is given twice"),
        ("csi://0", {"width": [3]}, "option width is a list"),
        ("rtsp://h/x?latncy=0", {}, "did you mean 'latency'"),
        ("rtsp://h/x?open_timeot=0", {}, "did you mean 'open_timeout'"),
        (True, {}, "not bool"),
        (1.5, {}, "not float"),
    ],
)
def test_options_that_are_refused(uri: Any, options: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(uri, options)


def test_options_are_merged() -> None:
    found = parse("csi://0?sensor-mode=2&width=3", {"width": 3, "flip": "none", "open-timeout": 4})
    expected = {"sensor_mode": "2", "width": 3, "flip": "none", "open_timeout": 4}
    assert dict(found.options) == expected
    assert parse("test://pattern?a=x%26y%3D1").options["a"] == "x&y=1"


@pytest.mark.parametrize(
    ("value", "number"), [("3", 3), (3, 3), ("3.0", 3), ("2.5", None), ("x", None), ("nan", None)]
)
def test_numbers(value: str | int, number: int | None) -> None:
    address = Address("file", "x", {"loop": value}, "x")
    if number is not None:
        assert address.numbers(loop=(-1, 5)) == {"loop": number}
        return
    with pytest.raises(ConfigError, match=r"option loop is .*, expected a whole number from -1 to"):
        address.numbers(loop=(-1, 5))


@pytest.mark.parametrize("value", ["-2", "6", "1e400", "inf", "", "1_0", "0x1", "9" * 5000])
def test_numbers_out_of_range(value: str) -> None:
    with pytest.raises(ConfigError, match="option loop is"):
        Address("file", "x", {"loop": value}, "x").numbers(loop=(-1, 5), rate=(0.5, 2.0))


def test_unknown_options_name_the_nearest() -> None:
    address = Address("file", "x", {"lop": "1"}, "x")
    with pytest.raises(ConfigError, match="x: unknown option 'lop', did you mean 'loop'"):
        address.numbers(loop=(-1, 5), rate=(0.5, 2.0))


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "uri",
    [
        f"rtsp://admin:{SECRET}@host/x",
        f"rtsp://admin:{SECRET}@host:554/x?latency=0",
        f"rtsp://{SECRET}@host/x",
        f"rtsp://admin:a%40{SECRET}@host/x",
        f"rtsp://admin:a@{SECRET}@host/x",
        f"rtsp://admin:a/{SECRET}@host/x",
        f"rtsp://admin:@{SECRET}/@host/x",
        f"rtsp://admin:1/{SECRET}@host/x",
        f"rtsp://admin:a#{SECRET}@host/x",
        f"rtsp://admin:1#{SECRET}@host/x",
        f"rtsp://admin:a?{SECRET}@host/x",
        f"rtsp://admin:1?{SECRET}@host/x",
        f"rtsp://admin:1?latency={SECRET}@host/x",
        f"rtsp://admin:{SECRET}@ho st/x",
        f"rtsp://admin:{SECRET}@/x",
        f"rtsp://admin:{SECRET}@host:port/x",
        f"rtsp://admin:{SECRET}@host/x\n",
        f"rtsp://admin:{SECRET}@host/x" + "y" * 20_000,
        f"rtsp://admin:{SECRET}@host/\0",
        f"rtsp:/admin:{SECRET}@host/x",
        f"rstp://admin:{SECRET}@host/x",
        f"http://host/video.cgi?user=admin&pwd={SECRET}",
        f"http://host/video.cgi?access_token={SECRET}&channel=2",
        f"http://host/x?url=rtsp%3A%2F%2Fuser%3A{SECRET}%40host",
        f"rtsp://host/user=admin_password={SECRET}_channel=1_stream=0.sdp",
        f"gst://rtspsrc location=rtsp://admin:{SECRET}@host/x ! decodebin",
        f'gst://rtspsrc location="rtsp://admin:a b {SECRET}@host/x" ! decodebin',
        f"gst://rtspsrc location='rtsp://admin:a b {SECRET}@host/x' ! decodebin",
        f"http://host/x?key={SECRET}&streamkey={SECRET}",
        f"gst://rtspsrc location=rtsp://h/x user-id=admin user-pw={SECRET} ! decodebin",
        f"gst://rtspsrc location=rtsp://h/x user-pw = '{SECRET} x' ! decodebin",
        f"gst://souphttpsrc location=https%3A%2F%2Fu%3A{SECRET}%40h ! decodebin",
    ],
)
def test_no_credentials_in_names_and_messages(uri: str) -> None:
    try:
        found = parse(uri)
    except Y7EdgeError as error:
        shown = str(error)
    else:
        shown = found.name + repr(found) + str(found)
        assert SECRET in found.place
    assert SECRET not in shown
    assert SECRET[1:] not in shown


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.builds(lambda s, t: f"{s}://{t}", st.sampled_from(SCHEMES), st.text(max_size=60)),
        st.builds(
            lambda s, parts: f"{s}://{''.join(parts)}",
            st.sampled_from(SCHEMES),
            st.lists(st.sampled_from([*"@:/?#&=%.[]!\"' ax1", "%40", "\n", "\0", "\ud800"])),
        ),
    )
)
@example("://")
@example("file://")
@example("file://%00")
@example("replay://")
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    try:
        found = parse(text)
    except Y7EdgeError as error:
        assert is_printable(str(error))
    else:
        assert found.scheme in SCHEMES
        assert is_printable(found.name)


USERINFO = st.lists(st.sampled_from([*"abc12:@/?#&=%.[]!\"' ", "%40", "latency="]), max_size=8)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["rtsp", "http", "rtp"]), USERINFO.map("".join), USERINFO.map("".join))
def test_any_password_stays_out(scheme: str, before: str, after: str) -> None:
    secret = "ZqZq"
    try:
        shown = parse(f"{scheme}://user:{before}{secret}{after}@host:554/x?channel=1").name
    except Y7EdgeError as error:
        shown = str(error)
    assert secret not in shown


@pytest.mark.parametrize(
    "text",
    [
        *('user-pw=(string)"s3c ret"', r'user-pw = "s3\"cret" ! x', r"user-pw=s3\ cret ! x"),
        r'extra-headers="headers, Authorization=(string)\"Bearer s3cret\""',
        *("Authorization: Basic s3cret==", "souphttpsrc cookies=s3cret", "http://h/?jwt=s3cret"),
        *(
            "srtsrc passphrase='s3c ret'",
            'user-pw="s3c ret',
            "rtsp://h/user=a_password=s3cret_channel=1",
        ),
    ],
)
def test_credentials_in_texts_of_libraries(text: str) -> None:
    shown = without_credentials(text)
    assert "s3c" not in shown and "ret" not in shown and "***" in shown


@pytest.mark.parametrize(
    "text", ["a://" * 4000, "a" * 16_000, "a-" * 8000, "user" * 4000, "@" * 99]
)
def test_redaction_takes_bounded_time(text: str) -> None:
    started = time.process_time()
    without_credentials(text * (16_000 // len(text)))
    assert time.process_time() - started < 2
