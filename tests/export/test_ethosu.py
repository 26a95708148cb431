"""Target ethosu: the placement that Vela reports, and faults of Vela.

``tests/reference/vela`` has what Vela 5.2.0 wrote and printed for committed files.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.export.full_integer import FLOAT_HEADS, FULL, Order, program
from y7edge import Detector, interpreters
from y7edge.data.synthetic import scenes
from y7edge.detect.preprocess import Preprocessor
from y7edge.errors import ConfigError, ExportError, RuntimeMissing
from y7edge.export import export
from y7edge.export.targets import ethosu
from y7edge.runtimes import handover

VARIABLE = "Y7EDGE_ETHOSU_PYTHON"
RECORDED = Path(__file__).parents[1] / "reference" / "vela"
INI = "[System_Config.Board]\ncore_clock=1e9\n[Memory_Mode.Mine]\nconst_mem_area=Axi1\n"


@pytest.fixture
def vela(tmp_path, monkeypatch):
    """Stand in for the interpreter with Vela: it writes a recorded result, then runs ``text``."""

    def install(record="full", text=""):
        python = program(
            tmp_path / "python",
            'if [ "$2" = "-c" ]; then echo \'{"ethos-u-vela": "5.2.0"}\'; exit; fi\n'
            f'echo "$@" > "{tmp_path}/arguments"\nout="$6"; mkdir -p "$out"\n'
            f'tar -xzf "{RECORDED}/{record}.tar.gz" -C "$out" && cat "$out/printed.txt"\n{text}',
        )
        monkeypatch.setenv(VARIABLE, python)

    yield install
    interpreters._versions.cache_clear()


@pytest.fixture
def order(tmp_path, monkeypatch):
    folder = tmp_path / "built"
    folder.mkdir()
    return lambda **options: Order(ethosu, folder, monkeypatch, **options)


def test_a_model_of_integers_is_compiled_and_proved(order, vela):
    vela()
    work = order()
    made = work.proved()
    files = {path.name for path in made.path.iterdir()}
    assert files == {
        *("model.tflite", "model_vela.tflite", "placement.json", "README.md"),
        *(handover.LISTING, handover.MANIFEST),
    }
    found = json.loads((made.path / "placement.json").read_text())
    assert (found["npu_operators"], found["cpu_operators"]) == (275, 0)
    assert found["operators"]["Conv2D"] == {"npu": 58, "cpu": 0, "estimated_cycles": 87236}
    assert found["operators"]["Maximum"]["npu"] == 55
    assert found["compiler"] == "ethos-u-vela 5.2.0"
    assert found["accelerator"] == "ethos-u65-256"
    assert found["memory"] == {
        **{"sram": 72 << 10, "dram": 47200, "on_chip_flash": 0, "off_chip_flash": 0},
    }
    assert (found["estimated_cycles"], found["macs"], found["clock"]) == (205718, 1796208, 1e9)
    (line,) = work.lines
    assert "275 of 275 operators on the ethos-u65-256, 0 on the CPU" in line
    assert "estimated, not measured" in line
    readme = (made.path / "README.md").read_text()
    assert "not a measurement" in readme
    assert "| Conv2D | 58 | 0 |" in readme
    assert "vela model.tflite --output-dir . --accelerator-config ethos-u65-256" in readme
    assert "value = 1 x pixel (0 to 255) -128." in readme


@pytest.mark.filterwarnings("ignore:.*exported without a proof")
def test_the_program_of_the_readme_decodes_integers(order, vela, monkeypatch):
    vela()
    made = order().built()
    readme = (made.path / "README.md").read_text()
    output = made.manifest.outputs[0]
    assert f"| int8 | {output.scale:.9g} | {output.zero_point} |" in readme
    (program_text,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    detector = Detector(made.path, conf=0.05, threads=1)
    image = scenes.scene(5, (100, 130)).image
    detections = detector(image)
    assert len(detections) > 3
    preprocess = Preprocessor(made.manifest.input)
    preprocess(image)
    monkeypatch.chdir(made.path)
    known = {"image": image, **detector.session.infer({"images": preprocess.tensor})}
    exec(re.sub("conf=[0-9.]+", "conf=0.05", program_text), known)
    inside = (known["xyxy"][:, 2:] > known["xyxy"][:, :2]).all(axis=1)
    np.testing.assert_allclose(known["xyxy"][inside], detections.xyxy, atol=1e-3)


def test_the_command_line(order, vela, tmp_path):
    vela()
    order(accelerator="ethos-u85-512", memory_mode="Sram_Only").built()
    words = (tmp_path / "arguments").read_text().split()
    assert words[:3] == ["-I", "-m", "ethosu.vela"]
    assert words[3].endswith("/model.tflite")
    assert words[4] == "--output-dir"
    assert words[6:] == [
        *("--accelerator-config", "ethos-u85-512", "--config", "Arm/vela.ini"),
        *("--system-config", "Ethos_U85_SYS_DRAM_Mid", "--memory-mode", "Sram_Only"),
        "--verbose-performance",
    ]


def test_operators_on_the_cpu_are_refused(order, vela):
    vela("heads")
    work = order(source=FLOAT_HEADS)
    with pytest.raises(
        ExportError, match=r"12 of 275 operators stay on the CPU.*Dequantize.*--option cpu=allow"
    ):
        work.target.build(work.request)


def test_operators_on_the_cpu_are_listed_if_they_are_allowed(order, vela):
    vela("heads")
    work = order(source=FLOAT_HEADS, cpu="allow")
    made = work.proved()
    assert work.lines[-1].startswith("warning: 12 of 275 operators stay on the CPU")
    found = json.loads((made.path / "placement.json").read_text())
    assert found["operators"]["Conv2D"]["cpu"] == 3
    whys = {one["kind"]: one["why"] for one in found["cpu"]}
    assert "unsupported DataType Float32" in whys["Conv2D"]
    assert whys["Dequantize"] == "Unsupported opType"
    readme = (made.path / "README.md").read_text()
    assert readme.count("unsupported DataType Float32") == 9


def test_a_layer_in_float_is_refused(order, vela):
    vela()
    work = order(source=FLOAT_HEADS)
    kept = replace(work.request.manifest.quantization, kept=("/row5/Conv",))
    request = replace(work.request, manifest=replace(work.request.manifest, quantization=kept))
    with pytest.raises(ExportError, match="integers only, but /row5/Conv would stay in float"):
        ethosu.build(request)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rm -r $out; echo 'RuntimeError: no memory' >&2; exit 1", r"RuntimeError: no memory"),
        ("kill -9 $$", r"Vela cannot convert the model: it was killed, probably because memory"),
        ("rm $out/*.tflite; exit 0", r"Vela cannot convert the model.*wrote no file"),
        ("head -c 999 $out/model_vela.tflite > t; mv t $out/model_vela.tflite", r"cannot be read"),
        ("echo no > $out/model_vela.tflite", r"Vela wrote a .tflite file that cannot be read"),
        (": > $out/model_vela.tflite", r"wrote an empty file"),
        ("rm $out/*per-layer.csv", r"Vela's report cannot be read .*use ethos-u-vela 5.2"),
        ("rm $out/*summary*.csv", r"Vela's report cannot be read"),
        ("echo a,b > $out/model_per-layer.csv; echo 1,2 >> $out/model_per-layer.csv", r"report"),
        ("sed -i 's/,NPU,/,GPU,/' $out/model_per-layer.csv", r"report cannot be read .*gpu"),
        ("sed -i '2s/,NPU,/,CPU,/' $out/model_per-layer.csv", r"0 operators for the CPU.* has 1"),
        ("sed -i '2,$d' $out/model_per-layer.csv", r"operators for the CPU"),
    ],
)
def test_faults_of_vela(order, vela, text, problem):
    vela(text=text)
    work = order()
    with pytest.raises(ExportError, match=problem) as caught:
        ethosu.build(work.request)
    assert "\n" not in str(caught.value)
    assert not (work.request.path / "files.json").exists()


def test_a_file_with_other_outputs_is_refused(order, vela):
    vela("heads")
    work = order(cpu="allow")
    with pytest.raises(ExportError, match="Vela's file has the inputs and outputs"):
        ethosu.build(work.request)


def test_a_file_of_which_nothing_is_compiled_is_refused(order, vela, tmp_path):
    """The source itself, with a report that says so: all operators stay on the CPU."""
    with tarfile.open(RECORDED / "full.tar.gz") as archive:
        rows = archive.extractfile("model_per-layer.csv").read().decode().splitlines()
    kinds = ethosu.litert_file.kinds(FULL, "y7edge")
    row = rows[1].replace(",NPU,", ",CPU,")
    (tmp_path / "rows.csv").write_text("\n".join([rows[0], *[row] * sum(kinds.values())]))
    copies = (
        f'cp "{FULL}" $out/model_vela.tflite; cp "{tmp_path}/rows.csv" $out/model_per-layer.csv'
    )
    vela(text=copies)
    work = order(cpu="allow")
    with pytest.raises(ExportError, match=r"stay on the CPU.*another accelerator or model$"):
        ethosu.build(work.request)


def test_without_vela_the_commands_are_named(order, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(interpreters, "find_spec", lambda _: None)
    with pytest.raises(
        RuntimeMissing,
        match=rf"python -m venv ENV && ENV/bin/pip install ethos-u-vela==5.2.0; .* {VARIABLE}=",
    ):
        ethosu.build(order().request)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"accelerator": "ethos-u99"}, r"'ethos-u99'; choose from ethos-u55-32"),
        ({"accelerator": "\x1b[31m" * 99}, r"option accelerator is '\\x1b"),
        ({"system-config": "../x"}, r"option system-config is '../x', expected a name"),
        ({"memory-mode": "a b"}, r"option memory-mode is 'a b'"),
        ({"cpu": "yes"}, r"option cpu is 'yes'; choose from refuse, allow"),
        ({"config": "/no/such/file.ini"}, r"cannot read the option config: /no/such/file.ini"),
    ],
)
def test_values_of_options(options, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        ethosu.require_fit(None, options)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_configuration_of_the_board(order, vela, tmp_path):
    config = tmp_path / "board.ini"
    config.write_text(INI)
    options = {"config": str(config), "system-config": "Board", "memory-mode": "Mine"}
    setup = ethosu.setup_of(options)
    assert setup.config == config
    for section, problem in (("system-config", "Board"), ("memory-mode", "Mine")):
        with pytest.raises(ConfigError, match=rf"no section \[\w+.Other\]; it has .*: {problem}"):
            ethosu.setup_of({**options, section: "Other"})
    vela()
    made = order(**options).built()
    assert (made.path / "vela.ini").read_text() == INI
    assert f"--config {config} --system-config Board" in (tmp_path / "arguments").read_text()
    readme = (made.path / "README.md").read_text()
    assert "--config vela.ini --system-config Board --memory-mode Mine" in readme
    assert str(tmp_path) not in readme + (made.path / "placement.json").read_text()


def test_options_are_checked_before_the_work(narrow_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ethosu, "versions", dict)
    lines: list[str] = []
    with pytest.raises(ConfigError, match="option accelerator"):
        export(
            narrow_tiny,
            tmp_path / "m.ethosu.handover",
            target="ethosu",
            imgsz=(64, 96),
            calib=tmp_path,
            unverified="x",
            options={"accelerator": "u1"},
            progress=lines.append,
        )
    assert not lines


@pytest.mark.slow
@pytest.mark.parametrize("record", ["full", "heads"])
def test_vela_writes_what_was_recorded(record, tmp_path):
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} is not set")
    pytest.importorskip("ai_edge_litert")
    source = tmp_path / "model.tflite"
    source.write_bytes((FULL if record == "full" else FLOAT_HEADS).read_bytes())
    made = tmp_path / "made.tflite"
    found = ethosu.compile_model(Path(os.environ[VARIABLE]), source, made, ethosu.setup_of({}))
    with tarfile.open(RECORDED / f"{record}.tar.gz") as archive:
        rows = archive.extractfile("model_per-layer.csv").read().decode().splitlines()
        compiled = archive.extractfile("model_vela.tflite").read()
    targets = [row["Target"] for row in csv.DictReader(rows)]
    assert (found.npu, len(found.cpu)) == (targets.count("NPU"), targets.count("CPU"))
    if found.npu == 275:
        assert made.read_bytes() == compiled
