"""Layers that go back to float until the mAP drops little enough; the options of int8."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from y7edge.artifact.reports import AccuracyDifference, FallbackStep
from y7edge.errors import ConfigError, ParityError
from y7edge.export.fallback import Attempt, Options, fall_back, quantized
from y7edge.export.graph.quantize_ranges import METHODS
from y7edge.export.targets import registry as targets

ORDER = [f"/row{i}/Conv" for i in range(20)]


def searched(enough, share=lambda kept: 1.0, order=ORDER):
    """The numbers of layers that were tried, and the result; ``enough`` layers are sufficient."""
    tried = []

    def attempt(kept):
        tried.append(len(kept))
        assert list(kept) == order[: len(kept)]
        drop = 0.001 if len(kept) >= enough else 0.1
        accuracy = AccuracyDifference("d", "val", 8, 0.5, 0.5 - drop, 0.005)
        return Attempt(SimpleNamespace(kept=kept), accuracy, None)

    found = fall_back(attempt, order, share)
    return tried, None if found is None else len(found.artifact.kept)


@pytest.mark.parametrize("enough", range(1, 21))
def test_the_smallest_sufficient_number_is_found(enough):
    tried, found = searched(enough)
    assert found == enough
    assert len(tried) == len(set(tried)), "nothing is built twice"
    first = tried.index(max(tried)) + 1
    assert tried[:first] == [min(2**i, 20) for i in range(first)]
    assert len(tried) <= 9


def test_half_of_the_multiplications_stay_in_integers():
    tried, found = searched(7, share=lambda kept: 1 - len(kept) * 0.1)
    assert (tried, found) == ([1, 2, 4, 5], None)
    tried, found = searched(5, share=lambda kept: 1 - len(kept) * 0.1)
    assert (tried, found) == ([1, 2, 4, 5], 5)
    assert searched(1, share=lambda kept: 0.4) == ([], None)
    assert searched(1, order=[]) == ([], None)


@pytest.mark.parametrize(
    ("options", "target", "outputs", "problem"),
    [
        ({}, "onnx", "decoded", "'decoded' are not available in int8, because one scale"),
        ({}, "onnx", "nms", "'nms' are not available in int8"),
        ({"profile": "u4s4"}, "onnx", "heads", "no profile 'u4s4'"),
        (
            {"profile": "u8s8"},
            "tensorrt",
            "heads",
            "does not take profile 'u8s8'; .* s8s8",
        ),
        ({"count": 10_001}, "onnx", "heads", "calib_images is 10001, expected at most 10000"),
        ({"ranges": "entropy"}, "onnx", "heads", "no range method 'entropy'; choose from minmax"),
    ],
)
def test_options_that_do_not_suit_are_refused(options, target, outputs, problem):
    with pytest.raises(ConfigError, match=problem):
        Options(**options).check(targets.get(target), "int8", outputs)


@pytest.mark.parametrize(
    "options",
    [{"profile": "u8s8"}, {"ranges": "mse"}, {"heads": True}, {"calib": "x"}, {"count": 3}],
    ids=str,
)
def test_options_of_int8_are_refused_in_other_precisions(options):
    with pytest.raises(ConfigError, match="is for precision int8, and the precision is fp16"):
        Options(**options).check(targets.get("onnx"), "fp16", "heads")
    Options(**options).check(targets.get("onnx"), "int8", "heads")


def test_the_help_names_all_range_methods():
    from typing import get_args, get_type_hints

    from y7edge.cli.export import export

    option = get_args(get_type_hints(export, include_extras=True)["ranges"])[1]
    assert option.metavar in ("|".join(METHODS), "{ranges}")


class Drops:
    """A calibrated graph whose artifacts all lose too much."""

    def __init__(self, integers_only):
        self.integers_only, self.ordered = integers_only, 0

    def share(self, kept):
        return 1 - len(kept) / 40

    def order(self):
        self.ordered += 1
        return ORDER

    def attempt(self, kept, build, measure):
        accuracy = AccuracyDifference("d", "val", 8, 0.5, 0.49, 0.005)
        step = FallbackStep(tuple(kept), self.share(kept), 0.49, 0.01)
        return Attempt(SimpleNamespace(), accuracy, step)


@pytest.mark.parametrize("integers_only", [False, True])
def test_a_target_of_integers_only_takes_no_layers_in_float(integers_only):
    source = Drops(integers_only)
    tried = "all layers in integers, as the target requires" if integers_only else "20 more conv"
    with pytest.raises(ParityError, match=rf"drops by 0.0100 or more, .* {tried}") as caught:
        quantized(source, None, lambda _: None, "nothing was written")
    assert source.ordered == (not integers_only)
    assert len(caught.value.report.fallback) == (1 if integers_only else 7)
