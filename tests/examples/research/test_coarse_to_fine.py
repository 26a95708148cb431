"""The example of auxiliary heads: its measurements on an untrained narrow model."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from y7edge.data.dataset import load
from y7edge.data.synthetic.scenes import NAMES, generate
from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.nn.random_weights import random_weights

SCRIPT = Path(__file__).parents[3] / "examples" / "research" / "coarse_to_fine.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("coarse_to_fine", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["coarse_to_fine"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["coarse_to_fine"]


@pytest.fixture(scope="module")
def narrow():
    spec = scale(registry.get("yolov7-w6", nc=len(NAMES)), width=0.0625)
    return replace(random_weights(spec, seed=1), names=NAMES, meta={"imgsz": 128})


def test_every_auxiliary_row_has_a_gradient(script, narrow, tmp_path):
    data = load(generate(tmp_path / "data", 8, 1, seed=3))
    gradients = script.auxiliary_gradients(narrow, data)
    assert list(gradients) == ["row 118", "row 119", "row 120", "row 121", "heads"]
    assert all(norm > 0 for norm in gradients.values())


def test_distance_is_relative_and_of_the_lead_alone(script, narrow):
    def changed(part, factor):
        arrays = {k: v * factor if part in k else v for k, v in narrow.arrays.items()}
        return replace(narrow, arrays=arrays)

    assert script.distance(narrow, narrow) == 0
    assert script.distance(narrow, changed(".aux.", np.float32(2))) == 0
    assert script.distance(narrow, changed(".lead.", np.float32(1.5))) == pytest.approx(0.5)


def test_a_claim_that_does_not_hold_is_a_failed_gate(script):
    from y7edge.errors import GateError

    with pytest.raises(GateError, match=r"below 0\.8"):
        script._require(False, f"mAP@0.5 is below {script.LEAST_MAP}")
