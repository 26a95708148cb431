"""The files of a run: checkpoints, thresholds, events and report."""

import json
import re
import time
from dataclasses import asdict, replace

import cv2
import pytest
import torch

from y7edge.artifact.schema import decode
from y7edge.data.dataset import load
from y7edge.data.synthetic import scenes
from y7edge.detect.detector import Detector
from y7edge.errors import CheckpointError
from y7edge.evaluation.evaluate import evaluate
from y7edge.models import registry, weights
from y7edge.models.scaling import scale
from y7edge.nn.build import Model
from y7edge.train.output.results import EpochRow, Written, read_csv
from y7edge.train.output.writer import RunWriter
from y7edge.train.run.validate import Validation
from y7edge.train.settings.config import TrainConfig

ROW = EpochRow(1, 0.07, 0.02, 0.03, 0.01, 12.5, 400.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = scenes.generate(tmp_path_factory.mktemp("data"), train=2, val=3, size=(96, 96))
    return load(path)


@pytest.fixture(scope="module")
def model():
    # Biases of an untrained head would leave nothing above the lowest threshold.
    torch.manual_seed(0)
    made = Model(scale(registry.get("yolov7-tiny", nc=4), 0.125)).eval()
    for head in made.head.lead:
        torch.nn.init.constant_(head.bias, 0.0)
    return made


def writer(data, folder, **changes):
    config = TrainConfig(data=data.source, imgsz=64, epochs=2, width=0.125, command="y7edge x")
    folder.mkdir(exist_ok=True)
    config = replace(config, **changes)
    return RunWriter(
        folder, config, data, origin="random weights", nominal=64, notes=["anchors fit"]
    )


@pytest.fixture(scope="module")
def metrics(data, model):
    """Metrics with a unique threshold."""
    return replace(Validation(data.split("val"), data.names, 64)(model), conf=0.437)


@pytest.fixture(scope="module")
def finished(data, model, metrics, tmp_path_factory):
    """A run of two epochs: the first evaluated, the second not."""
    kept = writer(data, tmp_path_factory.mktemp("runs") / "first")
    kept.batch(*batch())
    kept.add(ROW, model, metrics)
    kept.add(replace(ROW, epoch=2), model)
    kept.finish(Validation(data.split("val"), data.names, 64), model)
    return kept


def batch(count=5):
    images = torch.zeros((count, 3, 64, 64), dtype=torch.uint8)
    images[:, 0] = 200  # red
    return images, torch.tensor([[index, 1, 0.5, 0.5, 0.5, 0.5] for index in range(count)])


def test_folder_has_all_files(finished):
    found = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*.*")}
    assert found == {
        *("best.safetensors", "last.safetensors", "config.yaml", "report.html"),
        *("results.csv", "results.png", "predictions.json", "batches/000.jpg"),
        *(f"curves/{name}.png" for name in ("precision", "recall", "f1", "pr", "confusion")),
        *(f"predictions/{index:03d}.jpg" for index in range(3)),
        next(name for name in found if name.startswith("tensorboard/events.out.tfevents.")),
        *({"image_ids.json"} & found),
    }


def test_result_names_the_report_if_there_is_one(finished, data, model, metrics, tmp_path):
    assert finished.result().report == finished.folder / "report.html"
    kept = writer(data, tmp_path / "run")
    kept.add(ROW, model, metrics)
    assert kept.result().report is None


def test_table_has_the_figures_of_the_evaluated_epoch(finished, metrics):
    first, second = read_csv(finished.folder / "results.csv")
    for name in ("map50", "map50_95", "map75", "map_small", "ar300", "recall", "f1", "conf"):
        assert getattr(first, name) == pytest.approx(getattr(metrics, name), rel=1e-5)
        assert getattr(second, name) is None


def test_best_threshold_is_the_default_of_the_detector(finished):
    for name in ("best", "last"):  # the last epoch was not evaluated: the last threshold is kept
        path = finished.folder / f"{name}.safetensors"
        assert weights.load(path).meta["thresholds"] == {"conf": 0.437}
        with Detector(path) as detector:
            assert detector.info["conf"] == 0.437


def test_without_true_positives_the_default_threshold_remains(data, model, metrics, tmp_path):
    kept = writer(data, tmp_path / "run")
    kept.add(ROW, model, replace(metrics, conf=None))
    assert weights.load(kept.folder / "best.safetensors").meta["thresholds"] == {}


def test_best_is_the_fittest_and_the_earliest_of_equals(data, model, metrics, tmp_path):
    kept = writer(data, tmp_path / "run")
    figures = [(0.5, 0.2), (0.5, 0.3), (0.5, 0.3), (0.9, 0.25), None]
    figures = [f and replace(metrics, map50=f[0], map50_95=f[1]) for f in figures]
    better = [kept.add(replace(ROW, epoch=e), model, m) for e, m in enumerate(figures, 1)]
    assert better == [True, True, False, False, False]
    assert kept.best.epoch == 2
    assert weights.load(kept.folder / "best.safetensors").meta["epoch"] == 2
    assert weights.load(kept.folder / "last.safetensors").meta["epoch"] == 5


def test_page_shows_the_best_checkpoint_and_is_self_contained(finished, data):
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', text)
    with Detector(finished.folder / "best.safetensors") as detector:
        found = evaluate(detector.detect_for_evaluation, data.split("val"), data.names)
    assert f"<b>{found.map50:.3f}</b>" in text
    for words in ("anchors fit", "y7edge x", "random weights", data.digest, "2 images"):
        assert words in text
    assert text.count("<img") == 1 + 5 + 2 + 1  # course, plots, every other image, batch


def test_checkpoint_has_metadata_to_repeat_the_run(finished, data):
    meta = weights.load(finished.folder / "best.safetensors").meta
    assert (meta["config"]["command"], meta["config"]["seed"]) == ("y7edge x", 0)
    assert meta["data"]["digest"] == data.digest
    assert meta["machine"].endswith(f"{torch.get_num_threads()} threads")
    assert {"torch", "numpy", "lightning-fabric", "faster-coco-eval"} <= set(meta["versions"])
    assert any(name.startswith("opencv-python") for name in meta["versions"])


def test_three_batches_and_the_first_without_mosaic_are_drawn(data, tmp_path):
    kept = writer(data, tmp_path / "run")
    for closed in (False,) * 5 + (True,) * 2:
        kept.batch(*batch(), closed=closed)
    names = sorted(path.name for path in (kept.folder / "batches").iterdir())
    assert names == ["000.jpg", "001.jpg", "002.jpg", "closed.jpg"]
    sheet = cv2.imread(str(kept.folder / "batches" / "000.jpg"))
    assert sheet.shape == (2 * 320 + 4, 3 * 320 + 2 * 4, 3)  # five images: two rows of three
    assert sheet[20, 20].tolist() == pytest.approx([0, 0, 200], abs=12)  # red is red
    assert (sheet[330:, 700:] > 240).all()  # no sixth image
    column = sheet[160, 70:90].astype(int)
    assert abs(column - column[0]).max() > 60  # the box's left side, at a quarter of the width


def test_resumed_run_writes_the_files_of_an_uninterrupted_one(data, model, metrics, tmp_path):
    def epochs(kept, numbers):
        for number in numbers:
            kept.batch(*batch())
            figures = replace(metrics, map50_95=1 / number) if number != 2 else None
            kept.add(replace(ROW, epoch=number, box=1 / 3), model, figures)

    whole, first = writer(data, tmp_path / "whole"), writer(data, tmp_path / "cut")
    epochs(whole, (1, 2, 3, 4))
    epochs(first, (1, 2))
    text = json.dumps(asdict(first.state()))
    state = decode(Written, json.loads(text), origin="", error=CheckpointError)
    epochs(first, (3,))  # lost: the run is killed before its next state
    second = writer(data, tmp_path / "cut")
    second.restore(state)
    assert asdict(second.best) == asdict(first.best)
    epochs(second, (3, 4))
    for name in ("results.csv", "batches/002.jpg"):
        assert (first.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not (first.folder / "batches" / "003.jpg").exists()
    assert second.state() == whole.state()


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_tensorboard_has_the_scores(finished):
    tags = scalars(finished.folder)
    assert tags["loss/box"] == [(1, pytest.approx(0.07)), (2, pytest.approx(0.07))]
    assert tags["run/lr"][0] == (1, pytest.approx(0.01))
    assert [step for step, _ in tags["quality/map50"]] == [1]
    assert tags["at_best_f1/conf"] == [(1, pytest.approx(0.437))]


def test_tensorboard_drops_epochs_that_a_resumed_run_repeats(data, model, tmp_path):
    first = writer(data, tmp_path / "run")
    for epoch in (1, 2, 3):
        first.add(replace(ROW, epoch=epoch, box=float(epoch)), model)
    # Never closed, as after kill -9: each epoch is on the disk when it is recorded.
    assert scalars(tmp_path / "run")["loss/box"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    time.sleep(1.1)  # TensorBoard reads files in the order of the second in their names
    resumed = writer(data, tmp_path / "run")
    for epoch in (2, 3):
        resumed.add(replace(ROW, epoch=epoch, box=10.0 * epoch), model)
    assert scalars(tmp_path / "run")["loss/box"] == [(1, 1.0), (2, 20.0), (3, 30.0)]
