"""Verdicts on graphs, with the limits that the vendors' documents state."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from tests.export.graph.test_build import build
from tests.export.graph.test_quantize_check import made
from y7edge.export.audit import Row, audit, chips
from y7edge.export.audit.chips import Chip, Limit, Memory, Rule, load
from y7edge.export.audit.cures import Subject
from y7edge.export.audit.report import lines, problems, verdict
from y7edge.export.audit.verdicts import audit_structure
from y7edge.models import registry


@cache
def subject(name: str, size: int = 320, outputs: str = "heads") -> Subject:
    return Subject(registry.get(name), size, size, outputs)


def found(name, chip, *rewrites, **options):
    return audit_structure(subject(name, **options).structure(rewrites), load(chip))


def rows(audited, op):
    return {(row.verdict, row.why) for row in audited.rows if row.op == op}


def verdicts(audited, op):
    return {verdict for verdict, _ in rows(audited, op)}


# (variant, chip, rewrites, operator, verdicts, part of the reason)
KNOWN = [
    # Kneron, appendix "Hardware Supported Operators" of toolchain v0.33.1
    ("yolov7", "kl520", (), "Sigmoid", {"refused"}, "not an operator of this chip"),
    ("yolov7", "kl520", (), "Mul", {"refused"}, "not an operator of this chip"),
    ("yolov7-tiny", "kl520", (), "LeakyRelu", {"runs"}, ""),
    ("yolov7-tiny", "kl520", ("leaky-max",), "Max", {"refused"}, "not an operator"),
    ("yolov7-w6", "kl520", (), "Slice", {"refused"}, "not an operator of this chip"),
    ("yolov7-tiny", "kl720", (), "Resize", {"cpu"}, "number of resized axes 2, expected at most 1"),
    ("yolov7-tiny", "kl720", ("resize-per-axis",), "Resize", {"runs"}, ""),
    ("yolov7-w6", "kl720", (), "Slice", {"refused"}, "step 2, expected at most 1"),
    ("yolov7-e6e", "kl720", (), "Add", {"runs"}, ""),
    ("yolov7-tiny", "kl730", ("leaky-max",), "Max", {"runs"}, ""),
    # RKNN Compiler Support Operator List V2.3.2: pooling up to 7, convolution up to 31
    ("yolov7", "rk3588", (), "MaxPool", {"runs"}, ""),
    ("yolov7-w6", "rk3588", (), "Slice", {"runs"}, ""),
    ("yolov7-w6", "rk3588", ("reorg-conv6",), "Conv", {"runs"}, ""),
    # Edge TPU: no LeakyRelu, and only one split
    ("yolov7-tiny", "edgetpu", (), "LeakyRelu", {"cpu"}, "not in the list"),
    ("yolov7-tiny", "edgetpu", (), "Concat", {"cpu"}, "after /row0/LeakyRelu"),
    ("yolov7-tiny", "edgetpu", ("leaky-max",), "Max", {"runs"}, ""),
    # TIDL: pooling of 1 to 3, no even kernels
    ("yolov7", "am68a", (), "MaxPool", {"cpu", "runs"}, "kernel 5, expected 1 or 2 or 3"),
    ("yolov7", "am68a", ("pool3x3",), "MaxPool", {"runs"}, ""),
    ("yolov7-w6", "am68a", (), "Slice", {"unknown"}, "without strides only"),
    ("yolov7-w6", "am68a", ("reorg-conv6",), "Conv", {"runs", "cpu"}, "kernel 6, expected"),
    ("yolov7-w6", "am68a", ("reorg-conv7",), "Conv", {"runs", "unknown"}, "less than 7"),
    # ARTPEC-9: kernels 1, 2, 3, 5, 7 and 9; inputs of a Concat in multiples of 16 channels
    ("yolov7-w6", "artpec-9", ("reorg-conv6",), "Conv", {"runs", "cpu"}, "kernel 6, expected"),
    ("yolov7-w6", "artpec-9", ("reorg-conv7",), "Conv", {"runs"}, ""),
    ("yolov7-w6", "artpec-9", (), "Concat", {"runs", "cpu"}, "3, expected a multiple of 16"),
    # Vela places LEAKY_RELU, but the quantiser of LiteRT leaves it in float
    ("yolov7-tiny", "ethos-u55", (), "LeakyRelu", {"cpu"}, "leaves it in float"),
    ("yolov7-tiny", "ethos-u55", ("leaky-max",), "Max", {"runs"}, ""),
    ("yolov7-w6", "ethos-u85", (), "Slice", {"runs"}, ""),
    (
        "yolov7-tiny",
        "ethos-u55",
        ("resize-per-axis",),
        "Resize",
        {"cpu"},
        "ratio of the two factors 2",
    ),
    # Vitis AI changes the slope of LeakyReLU
    ("yolov7-tiny", "dpu", (), "LeakyRelu", {"unknown"}, "26/256"),
    # MDLA 2.0: windows up to 8, 1x1 without padding
    ("yolov7", "mdla2.0", (), "MaxPool", {"runs"}, ""),
    ("yolov7", "mdla2.0", (), "Conv", {"runs"}, ""),
    # Others
    ("yolov7-w6", "hailo8", (), "Slice", {"runs"}, ""),
    ("yolov7-w6", "hailo8l", (), "Slice", {"unknown"}, "P6"),
    ("yolov7", "artpec-8", (), "Sigmoid", {"cpu"}, "not in the list of the DLPU"),
    ("yolov7", "intel-npu4000", (), "Conv", {"unknown"}, "publishes no list"),
    ("yolov7", "orin-dla", (), "MaxPool", {"runs"}, ""),
    ("yolov7-tiny", "htp-v75", (), "LeakyRelu", {"runs"}, ""),
    ("yolov7-e6", "htp-v68", (), "Slice", {"runs"}, ""),
    ("yolov7-e6", "apple-ane", (), "Slice", {"unknown"}, "strided slices are not mentioned"),
]


@pytest.mark.parametrize(("name", "chip", "rewrites", "op", "expected", "why"), KNOWN)
def test_known_verdicts(name, chip, rewrites, op, expected, why) -> None:
    audited = found(name, chip, *rewrites)
    assert verdicts(audited, op) == expected
    reasons = [reason for verdict, reason in rows(audited, op) if verdict != "runs"]
    assert all(why in reason for reason in reasons)
    assert bool(reasons) == bool(why)


def test_an_operator_that_a_small_rockchip_refuses() -> None:
    """RV1106 and RK2118 compute no unsupported operator on the CPU: it is refused."""
    graph = build("yolov7-tiny", outputs="nms", size=(64, 64))
    for name in ("rv1106", "rk2118"):
        audited = audit(graph, load(name))
        assert audited.outcome == "refused"
        assert verdicts(audited, "TopK") == {"refused"}


def test_quantised_graphs() -> None:
    graph = made(build("yolov7-tiny", rewrites=["leaky-max"], size=(64, 128)), "u8s8")
    assert audit(graph, load("ethos-u55")).fits
    refused = audit(graph, load("kl730"))
    assert verdicts(refused, "QuantizeLinear") == {"refused"}
    assert "float graph" in lines(refused)[4]
    assert verdicts(audit(graph, load("artpec-9")), "DequantizeLinear") == {"unknown"}
    # QuantizeLinear and DequantizeLinear are not counted.
    assert len(audit(graph, load("kl730")).nodes) == len(
        found("yolov7-tiny", "kl730", "leaky-max").nodes
    )


def test_inputs_and_opsets() -> None:
    large = found("yolov7-tiny", "edgetpu", "leaky-max", size=640)
    (row,) = [row for row in large.rows if not row.op]
    assert (row.node, row.verdict) == ("input", "unknown")
    assert "longest side 640, expected at most 320" in row.why
    assert found("yolov7-tiny", "edgetpu", "leaky-max").fits
    graph = build("yolov7-tiny", size=(64, 64), batch=None)
    dynamic = audit(graph, load("edgetpu"))
    assert Row("input", "", "unknown", "batch size cannot be read from the graph") in dynamic.rows
    graph = build("yolov7-tiny", size=(64, 64), batch=2)
    assert any(
        row.why.startswith("batch size 2, expected at most 1")
        for row in audit(graph, load("edgetpu")).rows
    )
    graph.opset_import[0].version = 19
    old = audit(graph, replace(load("kl720"), opsets=(8, 18)))
    assert Row("opset", "", "refused", "opset 19, expected 8 to 18") in old.rows


def test_memory_for_parameters() -> None:
    refused = found("yolov7-tiny", "k210")
    assert refused.outcome == "refused"
    assert "refused: memory" in problems(refused)
    streamed = found("yolov7-tiny", "edgetpu", "leaky-max")
    assert streamed.fits
    assert streamed.remarks[0].startswith("parameters: 6.22 MB, of which 6 MB fit on the chip")
    # Target edgetpu refuses them too.
    large = found("yolov7", "edgetpu")
    assert "refused: memory" in problems(large)
    assert not any(remark.startswith("parameters") for remark in large.remarks)


def chip(**rules) -> Chip:
    operations = {
        op: value if isinstance(value, tuple) else (value,) for op, value in rules.items()
    }
    return Chip("X", "V", "S", "refused", operations, others_why="not listed")


def test_rules_are_tried_in_their_order() -> None:
    three = Rule(limits={"kernel": Limit(max=3)})
    five = Rule("unknown", {"kernel": Limit(max=5)}, why="not validated")
    structure = subject("yolov7").structure()
    pools = {
        r.verdict
        for r in audit_structure(structure, chip(MaxPool=(three, five))).rows
        if r.op == "MaxPool"
    }
    assert pools == {"runs", "unknown"}
    beyond = replace(three, beyond="cpu", why="a remark")
    audited = audit_structure(structure, chip(MaxPool=beyond))
    assert ("cpu", "kernel 5, expected at most 3; a remark") in rows(audited, "MaxPool")
    assert verdicts(audited, "Conv") == {"refused"}
    assert audited.share == 0


def test_the_share_of_multiplications() -> None:
    structure = subject("yolov7").structure()
    small = chip(Conv=Rule(limits={"kernel": Limit(max=1)}, beyond="cpu"))
    share = audit_structure(structure, small).share
    products = {1: 0, 3: 0}
    for node in structure.nodes:
        if node.op == "Conv":
            products[int(max(node.facts["kernel"]))] += node.products
    assert share == pytest.approx(products[1] / sum(products.values()))


def test_memory_that_is_too_small_for_some_chips() -> None:
    structure = subject("yolov7-tiny").structure()
    whole = {op: Rule() for op in ("Conv", "LeakyRelu", "Concat", "MaxPool", "Resize")}
    small = replace(chip(**whole), memory=Memory(10_000_000, 10_000_000, 2))
    assert audit_structure(structure, small).outcome == "refused"
    assert audit_structure(structure, replace(small, memory=Memory(10_000_000, 10_000_000, 1))).fits


@pytest.mark.parametrize("name", chips.names())
def test_reports_are_readable(name: str) -> None:
    """Reasons are given for everything that does not run, and no line is broken."""
    audited = found("yolov7-w6", name)
    text = lines(audited)
    assert text[0].startswith(f"{audited.chip.title}: {verdict(audited)}")
    assert text[-1].startswith("source: ")
    assert all(row.why for row in audited.rows if row.verdict != "runs")
    assert all("\n" not in line for line in text)
    assert len(lines(audited, nodes=True)) >= len(audited.nodes)
    record = audited.to_dict()
    assert record["outcome"] == audited.outcome
    assert len(record["rows"]) == len(audited.rows)
