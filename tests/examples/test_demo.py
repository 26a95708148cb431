from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from y7edge import Detector
from y7edge.artifact.artifact import Artifact
from y7edge.benchmark.hotpath import Gate
from y7edge.benchmark.measure import Report
from y7edge.data.dataset import load
from y7edge.data.synthetic.scenes import NAMES, generate, scene
from y7edge.detect.selftest import selftest
from y7edge.errors import ArtifactError, DigestError, GateError
from y7edge.evaluation.evaluate import ClassMetrics, Metrics, evaluate
from y7edge.export import export
from y7edge.export.folding import FoldReport
from y7edge.models import weights
from y7edge.runtimes import registry
from y7edge.train.output.results import EpochRow
from y7edge.train.settings.config import TINY, TrainConfig

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "reference" / "demo.safetensors"


@pytest.fixture(autouse=True)
def beside_the_demo(monkeypatch):
    """Its files import each other by name, as files of one folder that is run from."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "demo")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The artifact of the committed checkpoint."""
    path = tmp_path_factory.mktemp("trained") / "parts.onnx"
    return export(weights.load(REFERENCE), path).path


# --- the shuffled head ---------------------------------------------------------------------------


def test_shuffling_moves_the_head_s_weights_and_nothing_else(artifact_path, tmp_path):
    from demo_checks import shuffle_head

    out = tmp_path / "shuffled.onnx"
    moved = shuffle_head(artifact_path, out)
    before, after = onnx.load(artifact_path), onnx.load(out)
    different = []
    for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True):
        a_values, b_values = map(onnx.numpy_helper.to_array, (a, b))
        if not np.array_equal(a_values, b_values):
            different.append(a.name)
            assert np.array_equal(np.sort(a_values.ravel()), np.sort(b_values.ravel()))
            assert a_values.ndim == 4  # weights, not biases
            moved -= int((a_values != b_values).sum())
    assert len(different) == len(before.graph.output) == 3
    assert moved == 0
    assert before.graph.node == after.graph.node
    assert before.metadata_props == after.metadata_props


def test_shuffled_file_is_refused_by_the_selftest(artifact_path, tmp_path):
    from demo_checks import shuffle_head

    shuffle_head(artifact_path, tmp_path / "shuffled.onnx")
    with pytest.raises(DigestError, match="were changed after it was proved"):
        selftest(tmp_path / "shuffled.onnx")


def test_only_raw_heads_can_be_shuffled(narrow_tiny, tmp_path):
    from demo_checks import shuffle_head

    decoded = export(narrow_tiny, tmp_path / "decoded.onnx", outputs="decoded", imgsz=64).path
    with pytest.raises(ArtifactError, match="export it with outputs heads"):
        shuffle_head(decoded, tmp_path / "shuffled.onnx")
    assert not (tmp_path / "shuffled.onnx").exists()


# --- without torch -------------------------------------------------------------------------------


def test_a_process_without_torch_finds_the_same(trained, tmp_path):
    from demo_checks import detect_without_torch

    path = tmp_path / "tray.png"
    cv2.imwrite(str(path), scene(3).image)
    with Detector(trained) as detector:
        expected = detector(cv2.imread(str(path))).to_dict()["detections"]
    assert detect_without_torch(trained, [path]) == [expected]
    assert expected


def test_failing_process_is_reported_in_one_line(tmp_path):
    from demo_checks import detect_without_torch

    with pytest.raises(GateError, match=r"without torch and onnx, found: .*missing\.onnx"):
        detect_without_torch(tmp_path / "missing.onnx", [])


def test_torch_cannot_be_imported_there(artifact_path, monkeypatch):
    import demo_checks

    monkeypatch.setattr(demo_checks, "_CHILD", demo_checks._CHILD + "import torch")
    with pytest.raises(GateError, match="torch"):
        demo_checks.detect_without_torch(artifact_path, [])


# --- what the demo's own checkpoint can do -------------------------------------------------------


def test_committed_checkpoint_on_other_seeds(trained, tmp_path):
    from demo_checks import shuffle_head
    from demo_report import LEAST_MAP50, MOST_SHUFFLED_MAP50

    data = load(generate(tmp_path / "evaluated", 0, 40, seed=1), ["val"])
    shuffle_head(trained, tmp_path / "shuffled.onnx")
    found = []
    for path in (trained, tmp_path / "shuffled.onnx"):
        with Detector(path) as detector:
            found.append(evaluate(detector.detect_for_evaluation, data.split("val"), data.names))
    assert found[0].map50 >= LEAST_MAP50
    assert found[1].map50 < MOST_SHUFFLED_MAP50


@pytest.mark.slow
def test_the_whole_demo_with_a_model_that_needs_no_training(tmp_path, monkeypatch, capsys):
    import demo

    def training(data: Path, out: Path) -> TrainConfig:
        config = CONFIG(data, out)
        still = replace(TINY, lr0=1e-9, warmup_bias_lr=0.0)
        return replace(config, weights=REFERENCE, epochs=1, recipe=still)

    CONFIG = demo.training
    monkeypatch.setattr(demo, "training", training)
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    for name, count in (("TRAIN", 16), ("VAL", 8), ("EVALUATED", 40)):
        monkeypatch.setattr(demo, name, count)
    assert demo.main() == 0, capsys.readouterr().err
    assert_self_contained((tmp_path / "report.html").read_text(encoding="utf-8"))
    monkeypatch.setattr("demo_report.LEAST_MAP50", 1.01)
    assert demo.main() == 4  # also: files of an earlier run do not disturb
    assert "mAP@0.5 is" in capsys.readouterr().err


# --- the page ------------------------------------------------------------------------------------


def metrics(map50: float) -> Metrics:
    per_class = tuple(ClassMetrics(name, map50, map50 / 2, 10) for name in NAMES)
    return Metrics(map50, map50 / 2, map50 / 2, per_class, images=7, labels=40)


@pytest.fixture
def findings(artifact_path):
    from demo_report import Drawn, Findings, FoldProof, Step

    ms = {"p50": 1.5, "p95": 2.0, "p99": 3.0}
    counts = dict.fromkeys(
        ("convolutions", "batch_norms", "parallel_branches", "implicit", "auxiliary"), 3
    ) | {"parameters": 12345}
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    return Findings(
        config=TrainConfig(data="d", epochs=2, width=0.25),
        counts={"train": 5, "val": 3, "evaluation": 7},
        epochs=[
            EpochRow(1, 0.07, 0.02, 0.04, 0.01, 4.0, 500.0),
            EpochRow(2, 0.05, 0.01, 0.02, 0.001, 4.0, 500.0, 0.8, 0.4),
        ],
        best=EpochRow(2, 0.05, 0.01, 0.02, 0.001, 4.0, 500.0, 0.8, 0.4),
        parameters=12345,
        gflops=0.25,
        fold=FoldProof(
            counts,
            counts | {"batch_norms": 0},
            FoldReport("float32", (1e-6,), {0: 0.0, 1: 2e-7}),
            FoldReport("float64", (1e-15,), {}),
        ),
        artifacts=[Artifact(artifact_path, registry.load(artifact_path).manifest)],
        benchmark=Report(
            artifact="parts.onnx", model="m", model_digest="d" * 64, precision="fp32",
            imgsz=(64, 64), device="cpu", machine="Linux", processor="one",
            features=("avx2",), cores=2, threads=1, versions={"numpy": "2"},
            warmup=5, runs=100, frame_hw=(720, 1280), model_ms=ms, pre_ms=ms, post_ms=ms,
            end_to_end_ms=ms, peak_memory_mb=300.0, gate=Gate(0.4, 1.9, 2.5, 0.3),
        ),
        metrics=metrics(0.9321),
        checkpoint_metrics=metrics(0.9319),
        shuffled_metrics=metrics(0.0042),
        moved=4321,
        refusal="the <graph> was changed & refused",
        without_torch=31,
        drawn=Drawn([jpeg], [(jpeg, jpeg)], [(jpeg, jpeg)]),
        steps=[Step("Train", ("said \"this\" <b>",), 61.4)],
    )  # fmt: skip


class _Page(HTMLParser):
    """Checks that tags are closed in order, and gathers what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "srcset", "xlink:href")]
        if tag not in ("meta", "img", "line", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)


def assert_self_contained(text: str) -> None:
    page = _Page()
    page.feed(text)
    assert not page.open
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert page.references
    assert all(ref.startswith("data:image/jpeg;base64,") for ref in page.references)
    assert not re.search(r"@import|url\(|https?:", text)
    assert '<meta name="viewport" content="width=device-width' in text


def test_page_is_self_contained_and_shows_what_was_measured(findings, tmp_path):
    from demo_report import write

    write(findings, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_self_contained(text)
    deviation = findings.artifacts[0].manifest.parity["outputs"]["head1"]["deviation"]
    for shown in ("0.932", "0.004", "12,345", "4,321", "61.4", f"{deviation:.1e}", "1.90", "31"):
        assert shown in text
    assert "the &lt;graph&gt; was changed &amp; refused" in text
    assert "&lt;b&gt;" in text
    assert "tile bad" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": metrics(0.8999)}, "mAP@0.5 is 0.8999, expected at least 0.90"),
        ({"metrics": metrics(float("nan"))}, "mAP@0.5 is nan"),
        ({"shuffled_metrics": metrics(0.05)}, "mAP@0.5 is 0.0500"),
        (
            {"fold": FoldReport("float32", (2e-4,), {0: 1e-5})},
            "deviates by 2.0e-04",
        ),
    ],
    ids=["short", "nan", "shuffled", "fold"],
)
def test_failed_figures_are_reported(findings, tmp_path, change, words):
    from demo_report import write

    assert findings.beyond() == []
    if "fold" in change:
        change = {"fold": replace(findings.fold, single=change["fold"])}
    worse = replace(findings, **change)
    assert [words in problem for problem in worse.beyond()] == [True]
    write(worse, tmp_path / "report.html")  # the page is written all the same
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "tile bad" in text or 'class="no"' in text


# --- charts --------------------------------------------------------------------------------------


def elements(svg: str, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(tag))


def test_lines_are_where_their_values_are():
    import demo_charts

    svg = demo_charts.lines({"mAP": [(2, 0.0), (12, 0.5), (22, 1.0)]}, x_label="epoch", top=1.0)
    points = [tuple(map(float, pair.split(","))) for pair in
              elements(svg, "polyline")[0].get("points").split()]  # fmt: skip
    assert points[1] == pytest.approx(np.mean([points[0], points[2]], axis=0))
    marks = {t.text: float(t.get("y")) - 4 for t in elements(svg, "text") if t.text in ("0", "1")}
    assert (points[0][1], points[2][1]) == pytest.approx((marks["0"], marks["1"]), abs=0.11)


@pytest.mark.parametrize("high", [0.0, 0.013, 0.09, 1.0, 7.3, 480.0])
def test_ticks_reach_the_top(high):
    import demo_charts

    ticks = demo_charts._ticks(high)
    assert ticks[0] == 0
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


def test_bars_are_logarithmic_and_zero_has_no_bar():
    import demo_charts

    svg = demo_charts.bars(
        [1e-7, 1e-5, 0.0], x_label="rows", goal=(1e-4, "tolerance"), decades=(-8, -4)
    )
    heights = [float(bar.get("height")) for bar in elements(svg, "rect")]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.2)
    assert heights[2] == 0
