"""Write the constants of an artifact as a C header, for the decoder in ``examples/cpp/y7edge.h``.

The header is ASCII, and valid in C99 and C++11. Texts of the manifest only appear in string
literals, in which all characters but letters, digits and a few others are octal escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from y7edge.artifact.manifest import LevelInfo, Manifest, OutputInfo
from y7edge.errors import ConfigError

_DTYPES = {
    "float32": "Y7EDGE_FLOAT32",
    "float16": "Y7EDGE_FLOAT16",
    "int8": "Y7EDGE_INT8",
    "uint8": "Y7EDGE_UINT8",
    "int16": "Y7EDGE_INT16",
    "uint16": "Y7EDGE_UINT16",
}
# "?" is left out because of trigraphs.
_PLAIN = re.compile(rb"[A-Za-z0-9 _.,:;()+/-]")
_HEADER = """\
/* Constants of a model for y7edge.h, written by `y7edge info --c-header`.
 *
 * To use several models, define Y7EDGE_MODEL as the name of the constant before each inclusion.
 */
#ifndef Y7EDGE_{key}
#define Y7EDGE_{key}

#include "y7edge.h"

#ifndef Y7EDGE_MODEL
#define Y7EDGE_MODEL y7edge_model
#endif

static const char *const y7edge_{key}_names[] = {{
{names}
}};

{anchors}

static const y7edge_head y7edge_{key}_heads[] = {{
{heads}
}};

static const y7edge_model_info Y7EDGE_MODEL = {{
{fields}
}};

#undef Y7EDGE_MODEL
#endif
"""


def c_header(manifest: Manifest) -> str:
    """Return the text of a C header with the constants of an artifact with raw heads.

    Raises:
        ConfigError: the artifact has other outputs, or a dtype that the decoder does not read.
    """
    heads, image = manifest.outputs, manifest.input
    other = [output.role for output in heads if output.role != "head"]
    if other:
        raise ConfigError(
            f"the artifact has {' and '.join(other)}, expected raw heads: export it with "
            "--outputs heads or heads-sigmoid"
        )
    for dtype in (image.dtype, *(head.dtype for head in heads)):
        if dtype not in _DTYPES:
            raise ConfigError(
                f"the artifact has {dtype} tensors, expected {', '.join(_DTYPES)}: use an artifact "
                "of another target"
            )
    key = manifest.digest[:16]
    black, white = image.levels or (0, 0)
    fields = (
        (_string(manifest.model), "model"),
        (_string(manifest.digest), "digest of the manifest"),
        (_string(image.name), "name of the input"),
        (image.batch if isinstance(image.batch, int) else 0, "batch; 0: dynamic"),
        (image.height, "height"),
        (image.width, "width"),
        (int(image.layout == "NHWC"), "input in NHWC"),
        (_DTYPES[image.dtype], "dtype of the input"),
        (repr(float(image.scale)), "scale of the input"),
        (image.zero_point, "zero point of the input"),
        (int(image.color == "bgr"), "channels in the order BGR"),
        (image.letterbox.pad, "grey of the letterbox"),
        (black, "value of 16-bit images that becomes 0"),
        (white, "value of 16-bit images that becomes 255; 0: 8-bit images only"),
        (manifest.nc, "classes"),
        (f"y7edge_{key}_names", "class names"),
        (repr(float(manifest.thresholds.conf)), "confidence"),
        (repr(float(manifest.thresholds.iou)), "IoU of NMS"),
        (manifest.thresholds.max_det, "boxes per image"),
        (len(heads), "levels"),
        (f"y7edge_{key}_heads", "heads"),
    )
    pairs = list(zip(heads, manifest.levels, strict=True))
    return _HEADER.format(
        key=key,
        names=_lines(_string(name) for name in manifest.names),
        anchors="\n".join(_anchors(key, index, level) for index, (_, level) in enumerate(pairs)),
        heads=_lines(_head(key, index, *pair) for index, pair in enumerate(pairs)),
        fields="\n".join(f"    {value}, /* {what} */" for value, what in fields),
    )


def _anchors(key: str, index: int, level: LevelInfo) -> str:
    values = ", ".join(_float(side) for anchor in level.anchors for side in anchor)
    return f"static const float y7edge_{key}_anchors{index}[] = {{{values}}};"


def _head(key: str, index: int, head: OutputInfo, level: LevelInfo) -> str:
    values = (
        _string(head.name),
        _DTYPES[head.dtype],
        int(head.layout == "NHWC"),
        int(head.activation == "sigmoid"),
        repr(float(head.scale or 0)),
        head.zero_point or 0,
        level.stride,
        len(level.anchors),
        f"y7edge_{key}_anchors{index}",
    )
    return f"{{{', '.join(map(str, values))}}}"


def _lines(items: Iterable[str]) -> str:
    return "\n".join(f"    {item}," for item in items)


def _float(value: float) -> str:
    """Return a literal of the nearest float32."""
    text = f"{float(np.float32(value)):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _string(text: str) -> str:
    """Return a string literal of a text in UTF-8."""
    # An octal escape has at most three digits, so that a digit can follow it.
    return '"{}"'.format(
        "".join(
            chr(byte) if _PLAIN.match(bytes([byte])) else f"\\{byte:03o}"
            for byte in text.encode("utf-8", "backslashreplace")
        )
    )
