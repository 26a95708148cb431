"""Target ``mediatek``: a .tflite file and the commands of MediaTek's two compilers.

* ``ncc-tflite`` of the Neuron SDK compiles for Genio boards: ``--arch`` names the accelerator
  (MDLA), ``-d`` the result, and ``--relax-fp32`` lets float models compute in float16.
* LiteRT compiles ahead of time for the chips of phones and of some boards, with the NeuroPilot SDK
  in the package ai-edge-litert-sdk-mediatek (``ai_edge_litert/aot/vendors/mediatek`` of LiteRT
  2.3.0). That package downloads the SDK when it is installed, and installs without it if that
  fails; see ``y7edge.interpreters.empty_packages``.

The limits of MDLA 2.0 are those of the page ``_LIMITS``. The accelerator of MT8195 is MDLA 2.0, and
that of MT8188 is MDLA 3.0, for which the folder ``mt8188`` has a page. That MT8395 (Genio 1200) has
the accelerator of MT8195, and MT8370 and MT8390 (Genio 510 and 700) that of MT8188, is from memory.
Neither compiler was run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from y7edge import interpreters
from y7edge.artifact.artifact import Artifact
from y7edge.artifact.manifest import Manifest
from y7edge.export import handover_folder
from y7edge.export.handover_folder import Guide, Step
from y7edge.export.targets import _litert_convert, litert_file
from y7edge.export.targets.base import BuildRequest

NAME = "mediatek"
SUFFIX = ".mediatek.handover"
NEEDS = litert_file.NEEDS
misplaced = litert_file.misplaced
PRECISIONS = {"int8": "int8", "fp32": "fp32"}
PROFILES = litert_file.PROFILES
INPUTS = ("float32",)
OUTPUTS = ("heads",)
BATCHES = ("1", "N")
RUNTIME = "handover"
REWRITES: tuple[str, ...] = ()
INT8_HEADS = True
CALIBRATES = False
NEEDS_CHECKPOINT = True

MODEL, SCRIPT = "model.tflite", "compile.py"

_ARCHITECTURES = {
    **dict.fromkeys(("MT8195", "MT8395"), "mdla2.0"),
    **dict.fromkeys(("MT8188", "MT8370", "MT8390"), "mdla3.0"),
}
_AHEAD = (  # ai_edge_litert.aot.vendors.mediatek.target.SocModel
    *("MT6853", "MT6877", "MT6878", "MT6879", "MT6886", "MT6893", "MT6895", "MT6897", "MT6983"),
    *("MT6985", "MT6989", "MT6991", "MT6993", "MT8171", "MT8188", "MT8189"),
)
_CHIPS = tuple(sorted({*_ARCHITECTURES, *_AHEAD}))
OPTIONS = {"soc": f"The chip, one of {', '.join(_CHIPS)}; default: commands for any."}

_LIMITS = (
    "https://mediatek.gitlab.io/aiot/doc/aiot-dev-guide/master/sw/yocto/ml-guide/neuron-sdk/mt8195/"
    "supported-operations/mdla-guide/mdla_guidelines_2_0.html"
)
_SDK = "ai-edge-litert-sdk-mediatek"
_INT8 = 9  # TensorType of schema.fbs
_SAME = 0  # Padding
_PROGRAM = '''"""Compile {model} for the {soc} with LiteRT and MediaTek's SDK, on x86-64 Linux.

    pip install ai-edge-litert=={version} {sdk}=={version}
    python {script}
"""

from ai_edge_litert.aot import aot_compile
from ai_edge_litert.aot.vendors.mediatek import target

result = aot_compile.aot_compile(
    "{model}",
    output_dir="compiled",
    target=[target.Target(target.SocModel.{soc})],
    keep_going=False,
)
print(result.compilation_report())
'''


def require_fit(_: Manifest, options: Mapping[str, str]) -> None:
    """Raise ConfigError if the chip is not known."""
    handover_folder.choice(options, "soc", _CHIPS, _CHIPS[0])


def build(request: BuildRequest) -> Artifact:
    """Convert the model, check the limits, and write the commands.

    Raises:
        ConfigError: the chip is not known.
        ExportError: torch or litert-torch cannot convert the model.
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    require_fit(request.manifest, request.options)
    folder, soc = request.path, request.options.get("soc")
    folder.mkdir()
    int8 = request.manifest.precision == "int8"
    manifest = litert_file.convert_for_compiler(request, folder / MODEL)
    beyond = list(violations(folder / MODEL))
    request.progress(
        f"warning: beyond the limits of MDLA 2.0: {beyond[0]} (and {len(beyond) - 1} more)"
        if beyond
        else "all operators are within the limits of MDLA 2.0"
    )
    if soc in _AHEAD:
        for problem in interpreters.empty_packages():
            if problem.startswith(_SDK):
                request.progress(f"warning: {problem}")
        version = manifest.tools.get("ai-edge-litert", "2.3.0")
        text = _PROGRAM.format(model=MODEL, soc=soc, sdk=_SDK, script=SCRIPT, version=version)
        handover_folder.write(folder / SCRIPT, text)
    guide = _guide(soc, int8, beyond)
    return handover_folder.finish(replace(request, manifest=manifest), guide, MODEL)


def versions() -> dict[str, str]:
    """Return the versions of the converter's packages.

    Raises:
        RuntimeMissing: there is no interpreter with litert-torch.
    """
    return litert_file.versions()


def violations(path: Path) -> Iterator[str]:
    """Yield what is beyond the limits of MDLA 2.0 in a .tflite file, one line each."""
    model, graph = _litert_convert.opened(str(path))
    codes = _litert_convert.kind_names()
    for operator in graph.operators:
        kind = codes[model.operatorCodes[operator.opcodeIndex].builtinCode]
        read, written = (
            [graph.tensors[index] for index in indices if index >= 0]
            for indices in (operator.inputs, operator.outputs)
        )
        name = written[0].name.decode()
        for tensor in (read[0], *written):
            batch, *sides = (int(size) for size in tensor.shape)
            if not 1 <= batch <= 255 or any(not 1 <= side < 65536 for side in sides):
                yield f"{kind} {name} has a tensor of shape {(batch, *sides)}"
        if kind == "CONV_2D":
            problems = _of_convolution(operator.builtinOptions, read)
        elif kind == "MAX_POOL_2D":
            problems = _of_pool(operator.builtinOptions)
        else:
            continue
        yield from (f"{kind} {name} has {problem}" for problem in problems)


def _of_convolution(options: Any, read: list[Any]) -> Iterator[str]:
    _, height, width, channels = (int(size) for size in read[1].shape)
    stride, dilation = (
        (options.strideH, options.strideW),
        (options.dilationHFactor, options.dilationWFactor),
    )
    most = 8194 if read[0].type == _INT8 else 4095
    if channels > most:
        yield f"{channels} input channels, at most {most}"
    if channels != int(read[0].shape[3]):
        yield "groups"
    if max(height, width) > 16:
        yield f"the kernel {height}x{width}, at most 16x16"
    if not {*stride} <= ({1} if dilation != (1, 1) else {1, 2, 3, 4, 8}):
        yield f"the stride {stride} with the dilation {dilation}"
    if not {*dilation} <= {1, 2, 4, 8}:
        yield f"the dilation {dilation}"
    if options.padding == _SAME and max(height, width) > 31:
        yield "more than 15 pixels of padding"


def _of_pool(options: Any) -> Iterator[str]:
    window, stride = (
        (options.filterHeight, options.filterWidth),
        (options.strideH, options.strideW),
    )
    if max(window) > 8:
        yield f"the window {window}, at most 8x8"
    if any(not 1 <= step <= side for step, side in zip(stride, window, strict=True)):
        yield f"the stride {stride}, which is larger than the window {window}"


def _guide(soc: str | None, int8: bool, beyond: list[str]) -> Guide:
    """Return the README's sections."""
    steps = []
    if soc is None or soc in _ARCHITECTURES:
        steps.append(_for_genio(soc, int8))
    if soc is None or soc in _AHEAD:
        steps.append(_ahead(soc))
    limits = "All operators are within them."
    if beyond:
        limits = "Beyond them:\n\n" + "\n".join(f"* {line}" for line in beyond[:50])
    return Guide(
        title=f"MediaTek {soc}" if soc else "MediaTek's accelerators",
        steps=steps,
        files={SCRIPT: "compiles the model with LiteRT"} if soc in _AHEAD else {},
        not_run="MediaTek's compilers and accelerators.",
        sources=(_LIMITS, "LiteRT 2.3.0, ai_edge_litert/aot/vendors/mediatek"),
        sections={"Limits of MDLA 2.0": limits},
    )


def _for_genio(soc: str | None, int8: bool) -> Step:
    architecture = _ARCHITECTURES.get(soc or "", "NAME")
    relaxed = "" if int8 else " --relax-fp32"
    listed = [] if soc else ["ncc-tflite --arch=?  # lists the names"]
    return Step(
        "Compile for a Genio board",
        "With the Neuron SDK (registration at MediaTek), on the host or on the board, where Neuron "
        "Runtime runs `model.dla`."
        + ("" if int8 else " The accelerator computes float models in float16."),
        (*listed, f"ncc-tflite --arch={architecture}{relaxed} -d model.dla {MODEL}"),
    )


def _ahead(soc: str | None) -> Step:
    if soc is None:
        return Step(
            "Compile with LiteRT, for phones",
            f"For {', '.join(_AHEAD)}: export again with `--option soc=CHIP`, which adds a script.",
        )
    return Step(
        "Compile with LiteRT",
        f"On x86-64 Linux. `{_SDK}` downloads MediaTek's SDK when it is installed. If that fails, "
        "pip still reports success: `y7edge check` then says that the package is empty. LiteRT's "
        "CompiledModel API runs the file in `compiled/` on the device.",
        (f"pip install ai-edge-litert {_SDK}", f"python {SCRIPT}"),
    )
