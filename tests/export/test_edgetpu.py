"""Target edgetpu: limits, the file for an old compiler, and what the compiler prints."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.export.full_integer import FLOAT_HEADS, FULL, Order, program
from y7edge.errors import ConfigError, ExportError
from y7edge.export.targets import _litert_convert, edgetpu, litert_file
from y7edge.runtimes import handover, registry
from y7edge.runtimes.base import SessionOptions

# The form of google-coral/edgetpu, issues 427 (memory, counts) and 60 (more than one subgraph); the
# numbers and the operators are those of the committed file.
HEAD = """Edge TPU Compiler version 16.0.384591198
Searching for valid delegate with step 1
Try to compile segment with 250 ops
Started a compilation timeout timer of 600 seconds.

Model compiled successfully in 1379 ms.

Input model: model.tflite
Input size: 97.41KiB
Output model: model_edgetpu.tflite
Output size: 5.49MiB
On-chip memory used for caching model parameters: 1.92MiB
On-chip memory remaining for caching model parameters: 1.75KiB
Off-chip memory used for streaming uncached model parameters: 3.23KiB
Number of Edge TPU subgraphs: 1
Total number of operations: 136
Operation log: model_edgetpu.log
"""
MAPPED = """
Operator                       Count      Status

MAX_POOL_2D                    6          Mapped to Edge TPU
CONCATENATION                  14         Mapped to Edge TPU
CONV_2D                        58         Mapped to Edge TPU
Compilation child process completed within timeout period.
Compilation succeeded!
"""
PARTLY = """
Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of \
the model will instead run on the CPU, which is slower. If possible, consider updating your model \
to use only operations supported by the Edge TPU. For details, visit g.co/coral/model-reqs.
Number of operations that will run on Edge TPU: 76
Number of operations that will run on CPU: 2

Operator                       Count      Status

MAX_POOL_2D                    5          Mapped to Edge TPU
MAX_POOL_2D                    1          More than one subgraph is not supported
CONV_2D                        71         Mapped to Edge TPU
RESIZE_NEAREST_NEIGHBOR        1          Operation version not supported
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A file as the compiler writes it: one custom operator, with the ends of the source."""
    pytest.importorskip("ai_edge_litert")
    return custom(FULL, tmp_path_factory.mktemp("compiled") / "model_edgetpu.tflite")


def custom(source, path):
    """Write a file with one custom operator from the inputs of ``source`` to its outputs."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model, graph = _litert_convert.opened(str(source))
    code = schema.OperatorCodeT()
    code.builtinCode, code.customCode = schema.BuiltinOperator.CUSTOM, b"edgetpu-custom-op"
    code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, graph.inputs, graph.outputs
    model.operatorCodes, graph.operators = [code], [operator]
    builder = Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.fixture
def compiler(tmp_path, monkeypatch, compiled):
    """Stand in for edgetpu_compiler: it prints ``printed``, then runs ``text``."""

    def install(printed=HEAD + MAPPED, text=""):
        folder = tmp_path / "bin"
        folder.mkdir()
        (tmp_path / "printed").write_text(printed)
        program(
            folder / "edgetpu_compiler",
            f'echo "$@" > "{tmp_path}/arguments"\nwhile [ "$1" != -o ]; do shift; done\nout="$2"\n'
            f'cp "{compiled}" "$out/"; cat "{tmp_path}/printed"\n{text}',
        )
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return install


@pytest.fixture
def order(tmp_path, monkeypatch):
    folder = tmp_path / "built"
    folder.mkdir()
    return lambda **options: Order(edgetpu, folder, monkeypatch, **options)


def test_without_the_compiler_the_file_is_handed_over(order, compiler):
    work = order()
    made = work.proved()
    assert {path.name for path in made.path.iterdir()} == {
        *("model.tflite", "README.md", handover.LISTING, handover.MANIFEST)
    }
    assert work.lines == ["edgetpu_compiler was not run: README.md has the command"]
    readme = (made.path / "README.md").read_text()
    assert "edgetpu_compiler -s -a -d -t 600 model.tflite" in readme
    assert "0.02 million parameters" in readme


def test_what_the_compiler_maps(order, compiler, tmp_path):
    compiler()
    work = order(min_runtime="13")
    made = work.proved()
    found = json.loads((made.path / "placement.json").read_text())
    assert found == {
        "compiler": "16.0.384591198",
        "tpu": {"CONCATENATION": 14, "CONV_2D": 58, "MAX_POOL_2D": 6},
        "cpu": [],
        "on_chip": round(1.92 * 2**20),
        "streamed": round(3.23 * 2**10),
    }
    assert "maps 78 of 78 operators" in work.lines[0]
    assert len(work.lines) == 1
    words = (tmp_path / "arguments").read_text().split()
    assert words[:8] == ["-s", "-a", "-d", "-t", "600", "-m", "13", "-o"]
    assert words[9].endswith("/model.tflite")
    assert (made.path / "model_edgetpu.tflite").exists()


def test_operators_on_the_cpu_are_reported(order, compiler):
    compiler(HEAD + PARTLY)
    work = order()
    readme = (work.built().path / "README.md").read_text()
    assert "maps 76 of 78 operators" in work.lines[0]
    assert work.lines[1].startswith(
        "warning: 2 operators stay on the CPU, the first is MAX_POOL_2D (More than one subgraph"
    )
    assert "| RESIZE_NEAREST_NEIGHBOR | 1 | CPU: Operation version not supported |" in readme


@pytest.mark.parametrize(
    ("printed", "text", "problem"),
    [
        (HEAD + MAPPED, "echo 'Internal compiler error. Aborting!' >&2; exit 1", "Aborting!"),
        (HEAD + MAPPED, "kill -9 $$", "edgetpu_compiler .* it was killed"),
        (HEAD + MAPPED, "rm $out/*.tflite", "edgetpu_compiler cannot convert.*wrote no file"),
        (HEAD + MAPPED, "echo broken > $out/model_edgetpu.tflite", "cannot be read"),
        (HEAD + MAPPED, f'cp "{FULL}" $out/model_edgetpu.tflite', "mapped no operator"),
        (HEAD, "", "the output of edgetpu_compiler cannot be read"),
        (MAPPED, "", "the output of edgetpu_compiler cannot be read"),
        (HEAD + PARTLY.replace("Mapped to Edge TPU", "Not supported"), "", "mapped no operator"),
    ],
)
def test_faults_of_the_compiler(order, compiler, printed, text, problem):
    compiler(printed, text)
    work = order()
    with pytest.raises(ExportError, match=rf"{problem}.*--option compile=no$") as caught:
        edgetpu.build(work.request)
    assert "\n" not in str(caught.value)


def test_a_file_with_other_outputs_is_refused(order, compiler, compiled, tmp_path):
    other = custom(FLOAT_HEADS, tmp_path / "other.tflite")
    compiler(text=f'cp "{other}" $out/model_edgetpu.tflite')
    with pytest.raises(ExportError, match="other inputs and outputs"):
        edgetpu.build(order().request)


def test_the_compiler_can_be_switched_off(order, compiler):
    compiler(text="exit 1")
    assert not (order(compile="no").built().path / "model_edgetpu.tflite").exists()


def test_resizing_has_the_first_version_and_the_same_results(order, compiler):
    """An old compiler reads no constants behind the flatbuffer, and no half-pixel centres."""
    made = order().built()
    path = str(made.path / "model.tflite")
    before, after = _litert_convert.opened(str(FULL)), _litert_convert.opened(path)
    names = _litert_convert.kind_names()
    versions = [
        {names[c.builtinCode]: c.version for c in model.operatorCodes}
        for model, _ in (before, after)
    ]
    assert versions[0].pop("RESIZE_NEAREST_NEIGHBOR") > 1
    assert versions[1].pop("RESIZE_NEAREST_NEIGHBOR") == 1
    assert versions[0] == versions[1]
    resizing = [o for o in after[1].operators if hasattr(o.builtinOptions, "halfPixelCenters")]
    assert len(resizing) == 2
    assert not any(o.builtinOptions.halfPixelCenters for o in resizing)
    assert all(buffer.offset == 0 for buffer in after[0].buffers)
    images = np.random.default_rng(0).integers(-128, 128, (1, 64, 96, 3)).astype(np.int8)
    results = [
        registry.open_session(artifact, SessionOptions("cpu", 1)).infer({"images": images})
        for artifact in (registry.load(FULL), made)
    ]
    for name, array in results[0].items():
        np.testing.assert_array_equal(results[1][name], array)


def test_constants_behind_the_flatbuffer_are_moved_into_it(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model, _ = _litert_convert.opened(str(FULL))
    constants = [None if b.data is None else b.data.tobytes() for b in model.buffers]
    largest = max(range(len(constants)), key=lambda index: len(constants[index] or b""))
    behind = model.buffers[largest]
    behind.data, behind.offset, behind.size = None, 1 << 20, len(constants[largest])
    builder = Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path = tmp_path / "m.tflite"
    path.write_bytes(bytes(builder.Output()).ljust(1 << 20, b"\0") + constants[largest])
    _litert_convert.plain(str(path))
    content = path.read_bytes()
    assert len(content) < 1 << 20
    written = schema.Model.GetRootAs(content, 0)
    for index, expected in enumerate(constants):
        buffer = written.Buffers(index)
        found = buffer.DataAsNumpy()
        assert (found.tobytes() if buffer.DataLength() else None) == expected
        if buffer.DataLength():
            start = buffer._tab.Vector(buffer._tab.Offset(4))
            assert start % 16 == 0
    assert litert_file.ends(path, "y7edge") == litert_file.ends(FULL, "y7edge")


def test_resizing_by_another_factor_is_refused(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model, graph = _litert_convert.opened(str(FULL))
    names = _litert_convert.kind_names()
    for operator in graph.operators:
        if names[model.operatorCodes[operator.opcodeIndex].builtinCode].startswith("RESIZE"):
            graph.tensors[operator.outputs[0]].shape = [1, 9, 9, 8]
    with pytest.raises(ValueError, match="expected a factor of 2"):
        _litert_convert._without_half_pixels(model, graph)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"parameters": 36_900_000},
            r"36.9 million parameters.*about 8 million.*--width",
        ),
        ({"height": 640}, r"the input is 640x96.*at most 320 pixels \(--imgsz 320\)"),
        ({"width": 352}, r"the input is 64x352"),
        (
            {"min-runtime": "latest"},
            r"option min-runtime is 'latest', expected a version",
        ),
        ({"min-runtime": "13 -x"}, r"option min-runtime"),
        ({"compile": "perhaps"}, r"option compile is 'perhaps'; choose from yes, no"),
    ],
)
def test_limits(change, problem):
    manifest = registry.load(FULL).manifest
    sides = {name: change.pop(name) for name in ("height", "width") if name in change}
    source = replace(manifest.source, parameters=change.pop("parameters", 6_200_000))
    size = replace(manifest.input, **sides)
    fake = SimpleManifest(manifest.model, source, size)
    with pytest.raises(ConfigError, match=problem) as caught:
        edgetpu.require_fit(fake, change)
    assert "\n" not in str(caught.value)


class SimpleManifest:
    """The fields that are checked: a manifest would refuse outputs of another size."""

    def __init__(self, model, source, size):
        self.model, self.source, self.input = model, source, size


def test_the_largest_model_and_input_fit():
    manifest = registry.load(FULL).manifest
    source = replace(manifest.source, parameters=6_219_709)  # yolov7-tiny with 80 classes
    size = replace(manifest.input, height=320, width=320)
    edgetpu.require_fit(SimpleManifest("yolov7-tiny", source, size), {})
