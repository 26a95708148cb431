import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from y7edge.data.dataset import load

SCRIPT = Path(__file__).parents[2] / "examples" / "voc_to_yolo.py"

ANNOTATION = """<annotation>
<size><width>200</width><height>100</height></size>
<object><name>no</name>
<bndbox><xmin>20</xmin><ymin>10</ymin><xmax>60</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1])


@pytest.fixture
def voc(tmp_path):
    for name, content in (("annotations/a.xml", ANNOTATION), ("train.txt", "a\n")):
        path = tmp_path / "voc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "voc/images").mkdir()
    cv2.imwrite(str(tmp_path / "voc/images/a.png"), np.zeros((100, 200, 3), np.uint8))
    return tmp_path / "voc"


def test_converted_data_set_is_equal(voc, tmp_path):
    done = run(voc, tmp_path / "yolo")
    assert done.returncode == 0, done.stderr
    before, after = load(voc), load(done.stdout.strip())
    assert after.names == before.names == ("no",)
    (old,), (new,) = before.split("train"), after.split("train")
    np.testing.assert_allclose(new.boxes, old.boxes, atol=1e-6)
    assert new.class_id.tolist() == old.class_id.tolist()


def test_missing_folder(tmp_path):
    done = run(tmp_path / "missing", tmp_path / "yolo")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "yolo").exists()
