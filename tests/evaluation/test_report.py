"""Files of an evaluation, and the page that shows them."""

import re

import cv2
import numpy as np
import pytest

from tests.evaluation.random_tables import random_tables
from y7edge.data.sample import Sample
from y7edge.detect.detections import Detections
from y7edge.evaluation.evaluate import metrics_of
from y7edge.evaluation.plots import write_confusion, write_curves
from y7edge.evaluation.report import save, write_page
from y7edge.evaluation.tables import Tables

NAMES = ("a<b", "$x_$", "_c", "d")  # names with special characters of HTML and matplotlib


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder, the files saved into it, and the metrics."""
    folder = tmp_path_factory.mktemp("saved")
    truth, found = random_tables(0, unlabelled=(3,))
    tables = Tables(truth, found, 12)
    metrics = metrics_of(tables, NAMES)
    samples = []
    for index in range(12):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), np.full((30, 40, 3), 90, np.uint8))
        box = np.array([[0.5, 0.5, 0.5, 0.5]], np.float32)
        samples.append(Sample(path, box, np.zeros(1, np.int32)))
    files = save(folder, tables, metrics, samples, NAMES, lambda _: Detections.empty((40, 30)))
    write_page("Evaluation of x<y", "on z", metrics, files, folder / "report.html")
    return folder, files, metrics


def test_everything_is_written(saved):
    folder, files, _ = saved
    plots = {"precision.png", "recall.png", "f1.png", "pr.png", "confusion.png"}
    assert {path.name for path in (folder / "curves").iterdir()} == plots
    assert {path.name for path in files.plots} == plots
    assert len(files.predictions) == 12
    assert files.results == folder / "predictions.json"
    for path in (*files.plots, *files.predictions):
        assert cv2.imread(str(path)) is not None


def test_equal_figures_give_equal_plots(saved, tmp_path):
    folder, _, metrics = saved
    for path in write_curves(metrics.curves, NAMES, tmp_path):
        assert path.read_bytes() == (folder / "curves" / path.name).read_bytes()
    path = write_confusion(metrics.confusion, tmp_path / "confusion.png")
    assert path.read_bytes() == (folder / "curves" / "confusion.png").read_bytes()


@pytest.mark.parametrize("classes", [1, 35])
def test_plots_take_any_number_of_classes(classes, tmp_path):
    truth, found = random_tables(0, classes=classes)
    names = [f"class {index}" for index in range(classes)]
    metrics = metrics_of(Tables(truth, found, 12), names)
    assert len(write_curves(metrics.curves, names, tmp_path)) == 4
    assert write_confusion(metrics.confusion, tmp_path / "confusion.png").stat().st_size > 0


@pytest.mark.filterwarnings("error")
def test_characters_missing_in_the_font_become_code_points(tmp_path):
    truth, found = random_tables(0)
    names = ["猫", "犬", "größe", "d"]
    metrics = metrics_of(Tables(truth, found, 12), names)
    one = write_confusion(metrics.confusion, tmp_path / "one.png")
    write_curves(metrics.curves, names, tmp_path)
    metrics = metrics_of(Tables(truth, found, 12), ["犬", "猫", "größe", "d"])
    other = write_confusion(metrics.confusion, tmp_path / "other.png")
    assert one.read_bytes() != other.read_bytes()


def test_plots_of_nothing_found(tmp_path):
    truth, _ = random_tables(0)
    metrics = metrics_of(Tables(truth, np.empty((0, 7)), 12), NAMES)
    assert len(write_curves(metrics.curves, NAMES, tmp_path)) == 4


def test_page_is_self_contained(saved):
    folder, files, metrics = saved
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "http" not in text
    assert "<script" not in text
    assert text.count("<img") == len(files.plots) + len(files.predictions) / 2
    assert "a&lt;b" in text
    assert "x&lt;y" in text
    assert f"<td>{metrics.per_class[0].ap50_95:.3f}</td>" in text
    assert "<td>d</td><td>0</td><td>–</td>" in text  # a class without labels has no figures
    assert f"<b>{metrics.conf:.3f}</b>" in text
