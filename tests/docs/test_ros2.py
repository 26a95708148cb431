"""docs/ros2.md: the program that detects in a recording, run with a recording."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from tests.docs.blocks import blocks
from y7edge.data.synthetic.scenes import scene
from y7edge.detect.detector import Detector

MODEL = Path(__file__).parents[1] / "reference" / "schema1.onnx"
TOPIC = "/camera/image_raw"


def record(folder, images):
    """Write images as a recording of ROS 2."""
    from rosbags.rosbag2 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    image, header, time = (
        store.types[name]
        for name in ("sensor_msgs/msg/Image", "std_msgs/msg/Header", "builtin_interfaces/msg/Time")
    )
    with Writer(folder, version=9) as writer:
        connection = writer.add_connection(TOPIC, image.__msgtype__, typestore=store)
        for number, pixels in enumerate(images):
            height, width = pixels.shape[:2]
            message = image(
                header=header(stamp=time(sec=5, nanosec=number), frame_id="camera"),
                height=height,
                width=width,
                encoding="bgr8",
                is_bigendian=0,
                step=3 * width,
                data=np.ascontiguousarray(pixels).ravel(),
            )
            stamp = 5_000_000_000 + number
            writer.write(connection, stamp, store.serialize_cdr(message, image.__msgtype__))


def test_a_recording_without_ros(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rosbags", reason="the package rosbags is not installed")
    monkeypatch.chdir(tmp_path)
    images = [scene(seed).image for seed in (3, 4)]
    record(tmp_path / "recording", images)
    (tmp_path / "mine.onnx").write_bytes(MODEL.read_bytes())
    (program,) = (one.text for one in blocks("docs/ros2.md") if "AnyReader" in one.text)
    exec(compile(program, "docs/ros2.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    with Detector(MODEL) as detector:
        for number, (line, image) in enumerate(zip(lines, images, strict=True)):
            found = ast.literal_eval(line)
            assert (found["source"], found["timestamp_ns"]) == (TOPIC, 5_000_000_000 + number)
            expected = detector(image).to_dict()["detections"]
            assert found["detections"] == expected
