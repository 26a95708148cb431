"""open_source: which part opens what, with which options."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.sources.videos import write_video
from y7edge import ConfigError, SourceError, open_source
from y7edge.sources.files import Files
from y7edge.sources.pacing import Paced
from y7edge.sources.replay import INDEX, Replay


class Camera:
    """Keeps what it was made with."""

    def __init__(self, name: str, kind: str, options: Mapping[str, Any], **others: Any) -> None:
        self.name, self.kind, self.options, self.others = name, kind, dict(options), others


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("y7edge.sources.capture.Camera", Camera)
    monkeypatch.setattr("y7edge.sources.launch.gstreamer_problem", lambda: None)


def made(uri: Any, **options: Any) -> Camera:
    source: Any = open_source(uri, **options)
    assert isinstance(source, Camera)
    return source


@pytest.mark.usefixtures("camera")
def test_cameras_and_streams() -> None:
    found = made("rtsp://u:p@cam/x?channel=2&latency=5&rate=29.97&retries=3", open_timeout=4.5)
    assert found.name == "rtsp://cam/x?channel=2"
    assert found.kind == "appsink"
    assert found.options == {
        "scheme": "rtsp",
        "place": "u:p@cam/x?channel=2",
        "options": {"latency": "5", "rate": "29.97"},
    }
    rate = pytest.approx(29.97, abs=1e-4)
    assert found.others == {"rate": rate, "open_timeout": 4.5, "retries": 3}
    assert made(0).options["place"] == "/dev/video0"
    assert made("csi://1", width=640, height=480).others == {"rate": None}
    assert made("gst://videotestsrc ! x=?y").options["place"] == "videotestsrc ! x=?y"


@pytest.mark.usefixtures("camera")
def test_test_sources() -> None:
    found = made("test://pattern?fps=5&retries=0", fault="stall")
    assert (found.name, found.kind) == ("test://pattern", "pattern")
    assert (found.options, found.others) == ({"fps": "5", "fault": "stall"}, {"retries": 0})
    assert made("test://scenes").kind == "scenes"
    with pytest.raises(SourceError, match="unknown test source, did you mean 'test://pattern'"):
        open_source("test://patern")


@pytest.mark.usefixtures("camera")
@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("csi://0?widht=3", "width"),
        ("csi://0?width=x", "width"),
        ("rtsp://h/x#latncy=3", "latency"),
        ("rtsp://h/x?open_timeout=x", "option open_timeout is 'x', expected a number from 0.1 to"),
        ("rtsp://h/x?retries=-1", "option retries is '-1', expected a whole number from 0 to"),
        ("gst://videotestsrc", None),
    ],
)
def test_options_of_cameras_are_checked(uri: str, problem: str | None) -> None:
    if problem is None:
        made(uri)
        return
    with pytest.raises(ConfigError, match=problem):
        open_source(uri)


def test_files_and_recordings(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", frames=2)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / INDEX).touch()
    for uri, kind in (
        (tmp_path / "v.avi", Files),
        (f"file://{tmp_path}/v.avi", Files),
        (f"{tmp_path}/*.avi", Files),
        (tmp_path, Files),
        (f"{tmp_path}/v.avi?rate=5", Paced),
        (f"replay://{tmp_path}/r", Replay),
        (f"replay://{tmp_path}/r?speed=2", Paced),
    ):
        with open_source(uri) as source:
            assert type(source) is kind
            assert source.live == (kind is Paced)


def test_names_that_look_like_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "a?loop=3", "rtsp:x", "50%.avi", "a#b", " ", "\n.avi"):
        write_video(tmp_path / "v.avi", frames=2)
        (tmp_path / "v.avi").rename(tmp_path / name)
        with open_source(name) as source:
            assert [frame.source for frame in source] == [name, name]


def test_no_password_in_the_error_of_a_camera_that_is_not_there() -> None:
    uri = "rtsp://admin:s3cr3t@127.0.0.1:1/x?token=s3cr3t"
    with (
        pytest.raises(SourceError) as caught,
        open_source(uri, open_timeout=20, retries=0) as source,
    ):
        source.read(60)
    shown = "".join(traceback.format_exception_only(caught.value))
    cause = caught.value.__cause__
    shown += "" if cause is None else "".join(traceback.format_exception_only(cause))
    assert "rtsp://127.0.0.1:1/x?token=***" in shown
    assert "s3cr3t" not in shown
