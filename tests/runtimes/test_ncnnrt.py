"""The runtime for ncnn: options that users can set."""

from __future__ import annotations

import numpy as np
import pytest

from y7edge.errors import ConfigError
from y7edge.runtimes import ncnnrt
from y7edge.runtimes.base import SessionOptions


@pytest.fixture(scope="module")
def artifact(make):
    pytest.importorskip("ncnn")
    return make("ncnn").artifact


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"use_fp16_arithmetic": True}, "'use_fp16_arithmetic' that can be set"),
        ({"use_vulkan_compute": True}, "'use_vulkan_compute' that can be set.*the device"),
        ({"num_threads": 2}, "'num_threads' that can be set"),
        ({"use_nothing": True}, "'use_nothing' that can be set"),
        ({"use_winograd_convolution": "no"}, "is 'no', expected True or False"),
    ],
)
def test_options_that_cannot_be_set(artifact, own, problem):
    with pytest.raises(ConfigError, match=problem):
        ncnnrt.open(artifact, SessionOptions(provider_options=own))


def test_other_options_reach_the_engine(artifact):
    own = {"use_winograd_convolution": False}
    session = ncnnrt.open(artifact, SessionOptions(provider_options=own))
    assert session._net.opt.use_winograd_convolution is False
    image = artifact.manifest.input
    x = np.random.default_rng(0).random((1, 3, image.height, image.width), dtype=np.float32)
    for name, array in ncnnrt.open(artifact, SessionOptions()).infer({"images": x}).items():
        np.testing.assert_allclose(session.infer({"images": x})[name], array, atol=1e-4)
