"""LiteRT: integer tensors, delegates, precision, and files that contradict their manifest."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import InputInfo, LevelInfo, OutputInfo
from y7edge.errors import ArtifactError, ConfigError, DeviceError
from y7edge.runtimes import tflite
from y7edge.runtimes.base import SessionOptions

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
flatbuffers = pytest.importorskip("flatbuffers")

DTYPES = {"int8": 9, "uint8": 3}  # TensorType of schema.fbs
SCALE, ZEROS = 1 / 255, {"int8": -128, "uint8": 0}  # of pixels from 0 to 1


@pytest.fixture
def artifact(make):
    return make("litert").artifact


def quantized(manifest, path: Path, dtype="int8", scale=SCALE, zero=None, signatures=1):
    """An integer model with one level: the maxima of cells of 32 x 32 pixels, channels twice."""
    from ai_edge_litert import schema_py_generated as schema

    zero = ZEROS[dtype] if zero is None else zero

    def tensor(name, shape):
        found = schema.TensorT()
        found.name, found.shape, found.type = name, shape, DTYPES[dtype]
        found.quantization = schema.QuantizationParametersT()
        found.quantization.scale, found.quantization.zeroPoint = [scale], [zero]
        return found

    def operator(index, inputs, output, kind, options):
        found = schema.OperatorT()
        found.opcodeIndex, found.inputs, found.outputs = index, inputs, [output]
        found.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        found.builtinOptions = options
        return found

    def named(name, index):
        found = schema.TensorMapT()
        found.name, found.tensorIndex = name, index
        return found

    pool, join = schema.Pool2DOptionsT(), schema.ConcatenationOptionsT()
    pool.padding = schema.Padding.VALID
    pool.strideW = pool.strideH = pool.filterWidth = pool.filterHeight = 32
    join.axis = 3
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x", [1, 64, 96, 3]),
        tensor("pooled", [1, 2, 3, 3]),
        tensor("y", [1, 2, 3, 6]),
    ]
    graph.inputs, graph.outputs = [0], [2]
    graph.operators = [
        operator(0, [0], 1, "Pool2DOptions", pool),
        operator(1, [1, 1], 2, "ConcatenationOptions", join),
    ]
    model = schema.ModelT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    model.operatorCodes = []
    for builtin in (17, 2):  # MAX_POOL_2D, CONCATENATION
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = 2
        model.operatorCodes.append(code)
    model.signatureDefs = []
    for number in range(signatures):
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = f"s{number}", 0
        signature.inputs, signature.outputs = [named("images", 0)], [named("head0", 2)]
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    head = OutputInfo("head0", "head", (1, 2, 3, 6), 0, dtype, "NHWC", "logit", scale, zero)
    described = replace(
        manifest,
        nc=1,
        names=("nut",),
        input=InputInfo("images", 1, 64, 96, "NHWC", dtype, scale=1.0, zero_point=ZEROS[dtype]),
        outputs=(head,),
        levels=(LevelInfo(32, ((8.0, 9.0),)),),
        precision="int8",
        probes=(),
    )
    return Artifact(path, described)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_integer_tensors(artifact, tmp_path, dtype):
    session = tflite.open(
        quantized(artifact.manifest, tmp_path / "q.tflite", dtype), SessionOptions()
    )
    limits = np.iinfo(dtype)
    images = np.random.default_rng(0).integers(limits.min, limits.max, (1, 64, 96, 3), dtype)
    (found,) = session.infer({"images": images}).values()
    expected = images.reshape(1, 2, 32, 3, 32, 3).max(axis=(2, 4))
    np.testing.assert_array_equal(found, np.concatenate([expected, expected], axis=3))
    assert found.dtype == dtype
    assert (session.outputs[0].scale, session.outputs[0].zero_point) == (SCALE, ZEROS[dtype])
    assert session.arithmetic == "int8 (LiteRT with XNNPACK, cpu)"
    with pytest.raises(ConfigError, match=f"images is float32 .* expected {dtype}"):
        session.infer({"images": images.astype(np.float32)})


def test_another_scale_of_an_output_than_the_manifests_is_refused(artifact, tmp_path):
    made = quantized(artifact.manifest, tmp_path / "q.tflite")
    (head,) = made.manifest.outputs
    for changes in ({"scale": 0.5}, {"zero_point": 3}, {"scale": None, "zero_point": None}):
        changed = replace(made.manifest, outputs=(replace(head, **changes),))
        with pytest.raises(ArtifactError, match=r"tensor head0 with scale and zero point .0\.0039"):
            tflite.open(replace(made, manifest=changed), SessionOptions())


@pytest.mark.parametrize("changes", [{"scale": 0.25}, {"zero": 3}, {"dtype": "uint8", "zero": 7}])
def test_integer_inputs_must_be_pixels_from_0_to_1(artifact, tmp_path, changes):
    made = quantized(artifact.manifest, tmp_path / "q.tflite", **changes)
    with pytest.raises(
        ArtifactError, match=r"tensor images with scale .*, its manifest has \(0\.0039"
    ):
        tflite.open(made, SessionOptions())


def test_a_file_with_two_signatures_is_refused(artifact, tmp_path):
    made = quantized(artifact.manifest, tmp_path / "q.tflite", signatures=2)
    with pytest.raises(ArtifactError, match="has 2 signatures, expected 1"):
        tflite.open(made, SessionOptions())


def test_a_graph_that_contradicts_its_manifest_does_not_open(artifact):
    manifest = artifact.manifest
    heads = tuple(replace(o, shape=(*o.shape[:3], 27)) for o in manifest.outputs)
    changed = replace(manifest, names=("a", "b", "c", "d"), nc=4, outputs=heads)
    with pytest.raises(ArtifactError, match=r"head0 float32 \(1, 8, 12, 24\), .*27"):
        tflite.open(replace(artifact, manifest=changed), SessionOptions())
    renamed = tuple(replace(o, name=f"other{o.level}") for o in manifest.outputs)
    with pytest.raises(ArtifactError, match=r"'head0'.*'other0'"):
        tflite.open(
            replace(artifact, manifest=replace(manifest, outputs=renamed)), SessionOptions()
        )


@pytest.mark.parametrize("content", [b"", b"garbage " * 100, b"\x10\0\0\0TFL3" + b"\xff" * 500])
def test_what_is_no_model_is_refused(artifact, tmp_path, content):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(DeviceError, match=r"LiteRT cannot open .*m\.tflite"):
        tflite.open(replace(artifact, path=path, side_files=()), SessionOptions())


def test_weights_keep_their_precision(artifact, make):
    half = make("litert", precision="fp16").artifact
    counts = []
    for made in (artifact, half):
        loaded = interpreter.Interpreter(model_content=made.path.read_bytes())
        weights = [t["dtype"] for t in loaded.get_tensor_details() if len(t["shape"]) == 4]
        counts.append(weights.count(np.float16))
    assert counts == [0, 58]
    assert (
        tflite.open(half, SessionOptions()).arithmetic
        == "float16 weights, float32 (LiteRT with XNNPACK, cpu)"
    )


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_threads_reach_the_engine(artifact, monkeypatch, threads):
    """The narrow model is too small for XNNPACK to use several threads."""
    asked, real = [], interpreter.Interpreter

    def noted(**options):
        asked.append(options["num_threads"])
        return real(**options)

    monkeypatch.setattr(interpreter, "Interpreter", noted)
    tflite.open(artifact, SessionOptions(threads=threads))
    assert asked == [SessionOptions(threads=threads).thread_count]


def test_leaky_relu_is_a_maximum(artifact):
    plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    loaded = interpreter.Interpreter(
        model_content=artifact.path.read_bytes(), experimental_op_resolver_type=plain
    )
    kinds = {operator["op_name"] for operator in loaded._get_ops_details()}
    assert "MAXIMUM" in kinds
    assert not kinds & {"LEAKY_RELU", "PRELU", "TRANSPOSE", "CUSTOM"}


# --- delegates -----------------------------------------------------------------------------------

# A delegate that takes no operations; the option "fail" makes it report an error.
DELEGATE = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
struct delegate {
  void *data, *prepare, *from, *to, *release; int64_t flags; void *opaque;
} one;
static int prepare(void *context, void *self) { return 0; }
void *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                    void (*report)(const char *)) {
  for (size_t i = 0; i < count; ++i)
    if (!strcmp(keys[i], "fail")) { report(values[i]); return 0; }
  memset(&one, 0, sizeof one);
  one.prepare = (void *)prepare;
  return &one;
}
void tflite_plugin_destroy_delegate(void *self) {}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("delegate")
    (folder / "d.c").write_text(DELEGATE)
    command = ["cc", "-shared", "-fPIC", "-o", "libnone.so", "d.c"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return str(folder / "libnone.so")


@pytest.mark.parametrize("device", ["auto", "delegate"])
def test_a_delegate_is_loaded(artifact, library, device):
    options = {"delegate": library, "cache": 3}
    session = tflite.open(artifact, SessionOptions(device, provider_options=options))
    assert session.device == "delegate"
    assert session.arithmetic == "chosen by the delegate libnone.so (LiteRT, delegate)"
    images = np.random.default_rng(0).random(artifact.manifest.input.shape, dtype=np.float32)
    expected = tflite.open(artifact, SessionOptions()).infer({"images": images})
    for name, array in session.infer({"images": images}).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-4)
    session.close()


def test_a_delegate_that_fails_is_a_device_error(artifact, library):
    options = {"delegate": library, "fail": "no such chip"}
    with pytest.raises(DeviceError, match=r"cannot load the delegate .*libnone\.so.*no such chip"):
        tflite.open(artifact, SessionOptions(provider_options=options))


@pytest.mark.parametrize("name", ["/nowhere/libx.so", "libm.so.6"])
def test_a_library_that_is_no_delegate_is_a_device_error(artifact, name):
    with pytest.raises(DeviceError, match=f"cannot load the delegate {name}"):
        tflite.open(artifact, SessionOptions(provider_options={"delegate": name}))


def test_the_device_and_the_delegate_must_agree(artifact):
    with pytest.raises(DeviceError, match="'delegate' was asked for without a delegate"):
        tflite.open(artifact, SessionOptions("delegate"))
    with pytest.raises(ConfigError, match="for device 'cpu'"):
        tflite.open(artifact, SessionOptions("cpu", provider_options={"delegate": "x"}))
    with pytest.raises(ConfigError, match="no option 'threads'"):
        tflite.open(artifact, SessionOptions(provider_options={"threads": 2}))
