"""Target mediatek: commands, the script for LiteRT, limits, and SDKs that install empty."""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.export.full_integer import FLOAT, FULL, Order, program
from y7edge import interpreters
from y7edge.cli import main
from y7edge.errors import ConfigError
from y7edge.export.targets import _litert_convert, mediatek


@pytest.fixture
def order(tmp_path, monkeypatch):
    folder = tmp_path / "built"
    folder.mkdir()
    return lambda **options: Order(mediatek, folder, monkeypatch, **options)


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ({"soc": "MT8390"}, "ncc-tflite --arch=mdla3.0 -d model.dla model.tflite"),
        ({"soc": "MT8195"}, "ncc-tflite --arch=mdla2.0 -d model.dla model.tflite"),
        ({}, "ncc-tflite --arch=?  "),
        (
            {"soc": "MT8195", "source": FLOAT},
            "ncc-tflite --arch=mdla2.0 --relax-fp32 -d model.dla model.tflite",
        ),
    ],
)
def test_commands_for_genio_boards(order, options, command):
    work = order(**options)
    made = work.proved()
    assert work.lines == ["all operators are within the limits of MDLA 2.0"]
    readme = (made.path / "README.md").read_text()
    assert f"\n{command}" in readme
    assert ("float16" in readme) == ("source" in options)
    assert not (made.path / "compile.py").exists()


def test_the_script_for_litert_calls_what_exists(order):
    pytest.importorskip("ai_edge_litert.aot")
    from ai_edge_litert.aot import aot_compile
    from ai_edge_litert.aot.core import aot_types
    from ai_edge_litert.aot.vendors.mediatek import target

    made = order(soc="MT6989").built()
    script = (made.path / "compile.py").read_text()
    assert "ai-edge-litert-sdk-mediatek==2.3.0" in script
    (call,) = [
        node
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "aot_compile.aot_compile"
    ]
    known = inspect.signature(aot_compile.aot_compile).parameters
    assert {keyword.arg for keyword in call.keywords} <= {*known}
    assert [ast.literal_eval(call.args[0])] == ["model.tflite"]
    assert repr(target.Target(target.SocModel.MT6989)) == "MediaTek_MT6989"
    assert "target.Target(target.SocModel.MT6989)" in script
    assert hasattr(aot_types.CompilationResult, "compilation_report")
    assert "ncc-tflite" not in (made.path / "README.md").read_text()


def test_chips_are_those_of_litert():
    target = pytest.importorskip("ai_edge_litert.aot.vendors.mediatek.target")
    assert {*mediatek._AHEAD} == {model.value for model in target.SocModel} - {"ALL"}


@pytest.mark.parametrize("soc", ["mt6989", "", "MT1\x1b"])
def test_an_unknown_chip(soc):
    with pytest.raises(ConfigError, match=r"option soc is .*; choose from MT6853, ") as caught:
        mediatek.require_fit(None, {"soc": soc})
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("CONV_2D", {"strideH": 5}, r"the stride \(5, 2\)"),
        ("CONV_2D", {"dilationHFactor": 3, "strideH": 1, "strideW": 1}, r"the dilation \(3, 1\)"),
        ("CONV_2D", {"weights": (8, 17, 17, 3)}, "the kernel 17x17, at most 16x16"),
        ("CONV_2D", {"weights": (8, 3, 3, 1)}, "groups"),
        ("CONV_2D", {"weights": (8, 3, 3, 9000)}, "9000 input channels, at most 8194"),
        ("MAX_POOL_2D", {"filterHeight": 9}, r"the window \(9, 2\), at most 8x8"),
        ("MAX_POOL_2D", {"strideW": 3}, r"the stride \(2, 3\), which is larger than the window"),
        ("MAX_POOL_2D", {"written": (1, 70000, 1, 8)}, r"a tensor of shape \(1, 70000, 1, 8\)"),
    ],
)
def test_what_is_beyond_the_limits(monkeypatch, kind, change, problem):
    pytest.importorskip("ai_edge_litert")
    model, graph = _litert_convert.opened(str(FULL))
    names = _litert_convert.kind_names()
    operator = next(
        o for o in graph.operators if names[model.operatorCodes[o.opcodeIndex].builtinCode] == kind
    )
    assert not list(mediatek.violations(FULL))
    for name, value in change.items():
        if name in ("weights", "written"):
            index = operator.inputs[1] if name == "weights" else operator.outputs[0]
            graph.tensors[index].shape = np.array(value)
        else:
            setattr(operator.builtinOptions, name, value)
    monkeypatch.setattr(_litert_convert, "opened", lambda _: (model, graph))
    found = list(mediatek.violations(FULL))
    assert found
    assert any(re.search(problem, line) for line in found)
    assert found[0].startswith(kind)


def test_a_model_beyond_the_limits_is_reported(order, monkeypatch):
    lines = [f"CONV_2D {index} has the stride (5, 5)" for index in range(3)]
    monkeypatch.setattr(mediatek, "violations", lambda _: iter(lines))
    work = order()
    readme = (work.built().path / "README.md").read_text()
    assert work.lines == [f"warning: beyond the limits of MDLA 2.0: {lines[0]} (and 2 more)"]
    assert all(f"* {line}" in readme for line in lines)


# --- vendors' packages that install empty ---------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An interpreter with these packages: name -> files in its folder ``data``; None: no folder."""

    def install(packages):
        found = {}
        for name, files in packages.items():
            folder = tmp_path / name / "data"
            if files is not None:
                folder.mkdir(parents=True)
            for file in files or ():
                (folder / file).touch()
            found[name] = ["2.3.0", str(folder)]
        python = program(tmp_path / "python", f"echo '{json.dumps(found)}'")
        monkeypatch.setenv("Y7EDGE_LITERT_PYTHON", python)
        return python

    return install


def test_empty_packages_are_named(installed):
    python = installed(
        {
            "ai-edge-litert-sdk-mediatek": None,
            "ai-edge-litert-sdk-qualcomm": [],
            "ai-edge-litert-sdk-intel": ["libopenvino_intel_npu_compiler.so"],
        }
    )
    found = interpreters.empty_packages()
    assert len(found) == 2
    assert found[0].startswith(f"ai-edge-litert-sdk-mediatek 2.3.0 of {python} is empty")
    assert "--no-cache-dir ai-edge-litert-sdk-mediatek" in found[0]
    assert found[1].startswith("ai-edge-litert-sdk-qualcomm 2.3.0")
    assert not any("\n" in line for line in found)


def test_packages_are_found_in_an_interpreter(tmp_path, monkeypatch):
    """The program that asks: with the metadata of a package that is really empty."""
    folder = tmp_path / "lib"
    metadata = folder / "ai_edge_litert_sdk_mediatek-2.3.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(
        "Metadata-Version: 2.1\nName: ai-edge-litert-sdk-mediatek\nVersion: 2.3.0\n"
    )
    path = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    monkeypatch.setattr(interpreters, "_LOCATE", path + interpreters._LOCATE)
    monkeypatch.delenv("Y7EDGE_LITERT_PYTHON", raising=False)
    (found,) = interpreters.empty_packages()
    assert found.startswith("ai-edge-litert-sdk-mediatek 2.3.0 of ")
    data = folder / "ai_edge_litert_sdk_mediatek" / "data"
    data.mkdir(parents=True)
    assert interpreters.empty_packages() == (found,)
    (data / "v8_0_10").mkdir()
    assert interpreters.empty_packages() == ()


@pytest.mark.parametrize("text", ["echo hello", "exit 3", "echo '[]'"])
def test_a_broken_interpreter_is_not_reported_twice(tmp_path, monkeypatch, text):
    monkeypatch.setenv("Y7EDGE_LITERT_PYTHON", program(tmp_path / "python", text))
    assert interpreters.empty_packages() == ()


def test_the_target_and_the_check_warn(order, monkeypatch, capsys):
    lines = ("ai-edge-litert-sdk-mediatek 2.3.0 of P is empty", "ai-edge-litert-sdk-intel is empty")
    monkeypatch.setattr(interpreters, "empty_packages", lambda: lines)
    work = order(soc="MT6989")
    work.built()
    assert work.lines[1:] == [f"warning: {lines[0]}"]
    from y7edge import environment
    from y7edge.cli import check

    report = replace(environment.check(), empty=lines)
    monkeypatch.setattr(environment, "check", lambda: report)
    shown = check._lines(report, [])
    assert [line for line in shown if line.startswith("warning: ai-edge")] == [
        f"warning: {line}" for line in lines
    ]
    assert main(["check", "--json"]) in (0, 3)
    assert json.loads(capsys.readouterr().out)["empty"] == list(lines)
