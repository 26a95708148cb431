"""Options of wrong types: a one-line error that names the option."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from y7edge import Detector
from y7edge.artifact.schema import checked
from y7edge.detect.selftest import selftest
from y7edge.errors import ConfigError, DataError, DeviceError, Y7EdgeError
from y7edge.export import build, export, verify
from y7edge.export.targets import registry as targets
from y7edge.models.weights import load, save
from y7edge.runtimes import registry
from y7edge.runtimes.base import SessionOptions

ODD = {
    "None": None,
    "true": True,
    "3": 3,
    "-1": -1,
    "huge": 10**400,
    "huge and negative": -(10**400),
    "large": 10**12,
    "half": 1.5,
    "nan": float("nan"),
    "text": "x",
    "nothing": "",
    "bytes": b"x",
    "object": object(),
    "list": [],
    "mapping": {1: 2},
    "triple": (1, 2, 3),
    "array": np.zeros(2),
    "function": np.zeros,
    "zero": "\0",
    "long": "a" * 5000,
    "surrogate": "\udcff",
}
IMAGE = np.zeros((40, 50, 3), np.uint8)


def fails(call):
    """Call; whatever it raises is ours, in one line, soon."""
    started = time.monotonic()
    try:
        call()
    except Y7EdgeError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 2100
        assert time.monotonic() - started < 5
        return str(error)
    return None


# Values that are right for an option.
RIGHT = {
    "conf": {"None"},
    "iou": {"None"},
    "max_det": {"None", "3"},
    "classes": {"None", "list", "mapping"},
    "agnostic": {"true"},
    "threads": {"None", "3"},
    "imgsz": {"None"},
    "names": {"None"},
    "provider_options": {"None"},
    "check_payload": {"None", "true"},
    "progress": {"None", "function"},
    "images": {"None"},
    "options": {"None"},
    "unverified": {"None"},
    "dynamic": {"true"},
    "simplify": {"true"},
    "batch": {"3"},
    "tile": {"None"},
    "queue": {"3"},
}


def each(call, options):
    """Every odd value of every option, the others right."""
    for option in options:
        for name, value in ODD.items():
            if name in RIGHT.get(option, ()):
                continue
            message = fails(functools.partial(call, **{option: value}))
            assert message is not None, f"{option} = {value!r} was taken"


def test_detector(artifact_path):
    call = functools.partial(Detector, source=artifact_path)
    each(call, list(inspect.signature(Detector).parameters))


def test_session_options(artifact_path):
    artifact = registry.load(artifact_path)

    def call(**options):
        registry.open_session(artifact, SessionOptions(**options)).close()

    each(call, ["device", "threads", "provider_options", "check_payload"])


def test_functions_of_runtimes_and_targets():
    for function in (registry.load, registry.find, registry.get, registry.open_session,
                     targets.get, selftest):  # fmt: skip
        for value in ODD.values():
            assert fails(lambda f=function, v=value: f(v))


def test_export_verify_build(narrow_tiny, artifact_path, tmp_path):
    quick = {"checkpoint": narrow_tiny, "out": tmp_path / "m.onnx", "images": tmp_path / "none"}
    each(
        functools.partial(export, **{**quick, "imgsz": 64}),
        [o for o in inspect.signature(export).parameters if o not in ("progress", "images")],
    )
    checks = {"path": artifact_path, "against": narrow_tiny, "images": tmp_path / "none"}
    each(functools.partial(verify, **checks), ["path", "against", "images", "backend", "device",
                                               "threads", "progress"])  # fmt: skip
    made = {"source": artifact_path, "out": tmp_path / "m.xml", "target": "openvino"}
    each(functools.partial(build, **made), ["source", "out", "target", "device", "options",
                                            "progress"])  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_are_numbers(artifact_path):
    with Detector(artifact_path, conf=np.float32(0.3), max_det=np.int64(4)) as detector:
        assert detector.info["max_det"] == 4


@pytest.mark.parametrize("name", ODD)
def test_images_colours_and_times(artifact_path, name):
    value = ODD[name]
    with Detector(artifact_path) as detector:
        assert fails(lambda: detector(value))
        assert fails(lambda: detector.batch([value]))
        assert fails(lambda: detector.batch(value)) or name in ("list", "nothing")
        assert fails(lambda: detector(IMAGE, color=value)) or name == "None"
        assert fails(lambda: detector.batch([IMAGE], timestamp_ns=value)) or name in (
            "None",
            "bytes",
        )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 50, 3)), np.zeros((40, 50, 3), object), np.zeros((0, 50, 3), np.uint8),
        np.zeros((40, 50, 7), np.uint8), np.zeros((1, 40, 50, 3), np.uint8),
        np.zeros((40, 50, 3), np.int8), np.zeros((40, 50, 3), ">u2"), np.zeros(50, np.uint8),
        np.broadcast_to(np.uint8(0), (60_000, 60_000, 3)), np.zeros((), np.uint8),
    ],
    ids=lambda image: f"{image.dtype} {image.shape}",
)  # fmt: skip
def test_arrays_that_are_not_images(artifact_path, image):
    with Detector(artifact_path) as detector:
        for call in (lambda: detector(image), lambda: detector.batch([image])):
            with pytest.raises(DataError, match="an image must"):
                call()


def test_images_that_are_not_contiguous(artifact_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (60, 80, 3), np.uint8)
    with Detector(artifact_path) as detector:
        for view in (image[::-1, ::2], image.transpose(1, 0, 2), image[..., ::-1]):
            expected, found = detector(view.copy()), detector(view)
            np.testing.assert_array_equal(found.xyxy, expected.xyxy)


@pytest.mark.parametrize("do", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_detector_cannot_be_pickled_or_copied(artifact_path, do):
    with Detector(artifact_path) as detector:
        for value in (detector, detector._model.session):
            with pytest.raises(DeviceError, match=r"cannot be pickled.*open it there"):
                do(value)
        assert len(detector(IMAGE)) >= 0


def test_checked_keeps_name_and_signature():
    @checked
    def function(path: Path | str, *, side: int | tuple[int, int] = 3) -> int:
        """Return 7."""
        return 7

    assert function("a", side=(1, 2)) == 7 and function.__doc__ == "Return 7."
    assert list(inspect.signature(function).parameters) == ["path", "side"]
    with pytest.raises(
        ConfigError, match="side: expected a whole number or a list of 2, found 'x'"
    ):
        function("a", side="x")
    with pytest.raises(TypeError, match="missing"):
        function()


def test_a_checkpoint_that_cannot_be_written_is_refused(narrow_tiny, tmp_path):
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(Y7EdgeError, match="cannot be written"):
        save(narrow_tiny, tmp_path / "m.safetensors")
    with pytest.raises(Y7EdgeError, match="found a folder"):
        load(tmp_path / "m.safetensors")
