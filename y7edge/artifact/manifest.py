"""Manifests: an artifact's description, which the Detector reads, and its proof.

A manifest contains two digests. The digest of the manifest is checked whenever an artifact is
opened. The payload digest covers graph and weights. Because its check reads all files, only
``selftest``, ``verify`` and ``build`` check it, and the opening of an artifact of several files.

Manifests are stored as *canonical* JSON: sorted keys, no spaces, UTF-8, finite numbers. Equal
content gives equal bytes. JSON that is not canonical is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from y7edge.artifact import bounds
from y7edge.artifact.schema import decode, parse, texts
from y7edge.errors import ArtifactError, DigestError
from y7edge.text import is_printable

SCHEMA = 2
"""Version of the schema that this package writes; it also reads version 1."""

MAX_BYTES = 4 << 20
"""Largest manifest that is read; typical ones have some tens of kilobytes."""

Dim = int | Literal["dynamic"]
"""One dimension of a tensor."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]

THRESHOLD_INPUTS = {"conf": "float32", "iou": "float32", "max_det": "int64"}
"""Scalar inputs of a graph with NMS, and their dtypes; names as in ``Thresholds``."""

_DTYPES = ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32")
_HEX = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True)
class Letterbox:
    """Fit of images into the input: resized, centred, and padded with the grey value ``pad``."""

    pad: int = 114

    def __post_init__(self) -> None:
        _check(0 <= self.pad <= 255, f"pad is {self.pad}, expected 0 to 255")


@dataclass(frozen=True)
class InputInfo:
    """The input tensor: values are ``scale`` x pixel values (0..255) + ``zero_point``."""

    name: str
    batch: Dim
    height: int
    width: int
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: str = "float32"
    color: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1 / 255
    letterbox: Letterbox = field(default_factory=Letterbox)
    levels: tuple[int, int] | None = None  # pixel values of 16-bit images that map to 0 and 255
    zero_point: int = 0  # -128 if the input is int8

    def __post_init__(self) -> None:
        least, most, images = bounds.MIN_SIDE, bounds.MAX_SIDE, self.images
        _check(
            0 < images <= bounds.MAX_BATCH,
            f"batch is {self.batch}, expected 1 to {bounds.MAX_BATCH} or 'dynamic'",
        )
        for side in (self.height, self.width):
            _check(least <= side <= most, f"a side has {side} pixels, expected {least} to {most}")
        _check(
            self.pixels <= bounds.MAX_PIXELS and images * self.pixels <= bounds.MAX_BATCH_PIXELS,
            f"the input has {images} images of {self.height}x{self.width}, expected at most "
            f"{bounds.MAX_PIXELS} pixels per image and {bounds.MAX_BATCH_PIXELS} in all",
        )
        _check(self.dtype in _DTYPES, f"dtype is {self.dtype!r}, expected one of {_DTYPES}")
        _check(0 < self.scale <= 255, f"scale is {self.scale}, expected more than 0")
        low, high = self.levels or (0, 1)
        _check(0 <= low < high <= 65535, f"levels are {self.levels}, expected two of 0 to 65535")

    @property
    def images(self) -> int:
        """The batch size; 1 if it is dynamic."""
        return self.batch if isinstance(self.batch, int) else 1

    @property
    def pixels(self) -> int:
        """Height x width."""
        return self.height * self.width

    @property
    def shape(self) -> tuple[Dim, ...]:
        """(batch, 3, height, width), or (batch, height, width, 3) in layout NHWC."""
        return in_layout((self.batch, 3, self.height, self.width), self.layout)


@dataclass(frozen=True)
class OutputInfo:
    """One output tensor, with one of four roles.

    * ``head``: the output of one level, logits or probabilities: (batch, anchors x (5 + nc), rows,
      columns) in layout NCHW, (batch, rows, columns, anchors x (5 + nc)) in layout NHWC.
    * ``boxes``: (batch, N, 4) centre x, centre y, width, height in pixels of the input.
    * ``scores``: (batch, N, nc).
    * ``detections``: the boxes after NMS, (K, 7) batch index, x0, y0, x1, y1 in pixels of the
      input, class id, score; best first within an image.

    Boxes and scores have layout NWC, detections have layout NC; they have no activation. If an
    output is quantised, real value = (value - ``zero_point``) x ``scale``.
    """

    name: str
    role: Literal["head", "boxes", "scores", "detections"]
    shape: tuple[Dim, ...]
    level: int | None = None
    dtype: str = "float32"
    layout: Literal["NCHW", "NHWC", "NWC", "NC"] = "NCHW"
    activation: Literal["logit", "sigmoid"] | None = "logit"
    scale: float | None = None
    zero_point: int | None = None

    def __post_init__(self) -> None:
        known = self.dtype in _DTYPES
        _check(known, f"output {self.name} is {self.dtype!r}, expected one of {_DTYPES}")
        _check(
            (self.level is not None) == (self.role == "head"),
            f"output {self.name} ({self.role}) has level {self.level}, expected one for heads only",
        )
        layouts = {"head": ("NCHW", "NHWC"), "detections": ("NC",)}.get(self.role, ("NWC",))
        _check(
            (self.role == "head") == (self.activation is not None) and self.layout in layouts,
            f"output {self.name} ({self.role}) has activation {self.activation} and layout "
            f"{self.layout}, expected an activation for heads only, and layout "
            f"{' or '.join(layouts)}",
        )


@dataclass(frozen=True)
class LevelInfo:
    """Stride and anchors (width, height) of one detection level, in pixels of the input."""

    stride: int
    anchors: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        most = bounds.MAX_STRIDE
        _check(0 < self.stride <= most, f"a level has stride {self.stride}, expected 1 to {most}")
        count, most = len(self.anchors), bounds.MAX_ANCHORS
        _check(0 < count <= most, f"a level has {count} anchors, expected 1 to {most}")
        for anchor in self.anchors:
            _check(
                len(anchor) == 2 and all(0 < side <= bounds.MAX_ANCHOR for side in anchor),
                f"an anchor is {anchor}, expected (width, height) in pixels",
            )


@dataclass(frozen=True)
class Thresholds:
    """Default thresholds of the Detector: confidence, IoU of NMS, maximum boxes per image."""

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 300

    def __post_init__(self) -> None:
        _check(0 <= self.conf <= 1, f"conf is {self.conf}, expected 0 to 1")
        _check(0 <= self.iou <= 1, f"iou is {self.iou}, expected 0 to 1")
        most = bounds.MAX_DET
        _check(0 < self.max_det <= most, f"max_det is {self.max_det}, expected 1 to {most}")

    @classmethod
    def of_checkpoint(cls, meta: Mapping[str, Any]) -> Thresholds:
        """Return the defaults, with the confidence of the best F1 if ``meta`` contains it."""
        found = meta.get("thresholds")
        conf = found.get("conf") if isinstance(found, Mapping) else None
        usable = isinstance(conf, int | float) and not isinstance(conf, bool) and 0 <= conf <= 1
        return cls(conf=float(conf)) if usable else cls()  # type: ignore[arg-type]


@dataclass(frozen=True)
class Source:
    """The checkpoint of an artifact; parameters and GFLOPs are those of the folded model."""

    digest: str
    form: str
    parameters: int
    gflops: float

    def __post_init__(self) -> None:
        _check(bool(_HEX.fullmatch(self.digest)), "digest is not a SHA-256")


@dataclass(frozen=True)
class Quantization:
    """How an int8 artifact was made.

    Attributes:
        profile: Profile of the QDQ graph.
        ranges: Method that chose the ranges of activations.
        calibration: SHA-256 of the calibration images and their names.
        images: Their names, relative to the data set.
        kept: Names of the convolutions that stay in float.
        share: Share of the multiplications that are computed in integers.
        corrections: Names of the corrections of weights and biases.
    """

    profile: str
    ranges: str
    calibration: str
    images: tuple[str, ...]
    kept: tuple[str, ...]
    share: float
    corrections: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(bool(_HEX.fullmatch(self.calibration)), "calibration is not a SHA-256")
        count, most = len(self.images), bounds.MAX_CALIBRATION
        _check(0 < count <= most, f"there are {count} calibration images, expected 1 to {most}")
        _check_lengths("name", (self.profile, self.ranges, *self.kept, *self.corrections))
        _check(0 <= self.share <= 1, f"share is {self.share}, expected 0 to 1")


@dataclass(frozen=True)
class Samples:
    """Sampled values of one output of the reference model; of the artifact itself in int8.

    For an output ``detections``, whole rows are sampled. Each is compared with the nearest row of
    the same image and class.
    """

    output: str
    scale: float  # largest magnitude of the output; deviations are fractions of it
    indices: tuple[int, ...]  # of the values in the flattened output (C order)
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        _check(
            0 < len(self.indices) == len(self.values) <= 4096 and min(self.indices) >= 0,
            f"samples of {self.output} have {len(self.indices)} indices and "
            f"{len(self.values)} values, expected the same number of both, from 1 to 4096",
        )
        _check(self.scale > 0, f"samples of {self.output} have scale {self.scale}, expected > 0")


@dataclass(frozen=True)
class Probe:
    """A generated input, and samples of the outputs for it."""

    recipe: str  # name of the function that generates the input from ``key`` and ``batch``
    key: str
    batch: int
    crc32: int  # of the input's float32 bytes
    tolerance: float  # largest allowed deviation, as a fraction of ``Samples.scale``
    samples: tuple[Samples, ...]
    thresholds: Thresholds | None = None  # values for the inputs of a graph with NMS

    def __post_init__(self) -> None:
        most = bounds.MAX_BATCH
        _check(0 < self.batch <= most, f"a probe has batch {self.batch}, expected 1 to {most}")
        _check(0 < self.tolerance < 1, f"a probe has tolerance {self.tolerance}, expected 0 to 1")
        _check(len(self.samples) > 0, "a probe has no samples")
        _check(bool(_KEY.fullmatch(self.key)), f"a probe has the key {self.key[:64]!r}")


@dataclass(frozen=True)
class Manifest:
    """Description of an artifact, with its proof (``parity`` and ``probes``).

    ``engine`` is empty, except in files that run only on one kind of machine: then it names this
    machine and the settings of the build (see ``runtimes._trt_versions.mismatch``), or the chip.
    """

    model: str
    nc: int
    names: tuple[str, ...]
    input: InputInfo
    outputs: tuple[OutputInfo, ...]
    levels: tuple[LevelInfo, ...]
    source: Source
    precision: Precision
    target: str
    opset: int | None
    payload_digest: str
    thresholds: Thresholds = field(default_factory=Thresholds)
    licence: str | None = None
    tools: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    threshold_inputs: tuple[Literal["conf", "iou", "max_det"], ...] = ()  # optional inputs
    engine: Mapping[str, Any] = field(default_factory=dict)
    quantization: Quantization | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _check(self.schema == SCHEMA, f"schema is {self.schema}, expected {SCHEMA}")
        _check(
            0 < self.nc == len(self.names) <= bounds.MAX_CLASSES,
            f"nc is {self.nc} and there are {len(self.names)} class names, expected one name per "
            f"class, for at most {bounds.MAX_CLASSES} classes",
        )
        _check_lengths("class name", self.names)
        _check_texts([self.model, self.target, self.licence, *self.names])
        count, most = len(self.probes), bounds.MAX_PROBES
        _check(count <= most, f"there are {count} probes, expected at most {most}")
        for probe in self.probes:
            fits = probe.batch * self.input.pixels <= bounds.MAX_BATCH_PIXELS
            _check(fits, f"a probe has {probe.batch} images, too many of this size")
        _check(bool(_HEX.fullmatch(self.payload_digest)), "payload_digest is not a SHA-256")
        self._check_levels()
        self._check_outputs()

    def _check_levels(self) -> None:
        strides = self.strides
        most = bounds.MAX_LEVELS
        _check(0 < len(strides) <= most, f"there are {len(strides)} levels, expected 1 to {most}")
        _check(
            list(strides) == sorted(set(strides)), f"strides are {strides}, expected finest first"
        )
        _check(
            self.input.height % strides[-1] == 0 and self.input.width % strides[-1] == 0,
            f"input is {self.input.height}x{self.input.width}, not a multiple of {strides[-1]}",
        )

    def _check_outputs(self) -> None:
        roles = tuple(output.role for output in self.outputs)
        expected = expected_shapes(self.input, self.levels, self.nc)
        if roles == ("head",) * len(self.levels):
            found_levels = [output.level for output in self.outputs]
            _check(
                found_levels == list(range(len(self.levels))),
                f"heads are of levels {found_levels}, expected one for each level, finest first",
            )
        else:
            _check(
                roles in (("boxes", "scores"), ("detections",)),
                f"outputs are {', '.join(roles)}; expected one head per level, boxes and scores, "
                "or detections",
            )
        allowed = (tuple(THRESHOLD_INPUTS), ()) if roles == ("detections",) else ((),)
        _check(
            self.threshold_inputs in allowed,
            f"threshold inputs are {self.threshold_inputs}; a graph with detections has "
            f"{', '.join(THRESHOLD_INPUTS)} or none",
        )
        values = sum(
            len(level.anchors) * (5 + self.nc) * (self.input.pixels // level.stride**2)
            for level in self.levels
        )
        _check(
            values * self.input.images <= bounds.MAX_OUTPUTS,
            f"its outputs have {values} values per image and {self.input.images} images, expected "
            f"at most {bounds.MAX_OUTPUTS} values in all",
        )
        for output in self.outputs:
            shape = expected[output.role if output.level is None else f"head{output.level}"]
            shape = in_layout(shape, output.layout)
            _check(output.shape == shape, f"{output.name} is {output.shape}, expected {shape}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels, finest first."""
        return tuple(level.stride for level in self.levels)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON without its entry ``digest``."""
        return _digest(asdict(self))

    def to_json(self) -> str:
        """Return canonical JSON with the digest."""
        return _canonical({**asdict(self), "digest": self.digest})

    @staticmethod
    def from_json(text: str | bytes, origin: str = "the file") -> Manifest:
        """Read canonical JSON of schema 1 or 2; ``origin`` names the file in messages.

        Raises:
            ArtifactError: the text is not a manifest, has a newer schema, or has invalid content.
            DigestError: the manifest was changed after it was written.
        """
        data = _parse(text, origin)
        digest = data.pop("digest", None)
        if digest != _digest(data):
            raise DigestError(_CHANGED.format(origin))
        schema = data.get("schema")
        if type(schema) is not int:
            raise ArtifactError(f"the manifest of {origin} has no schema number")
        if schema > SCHEMA:
            raise ArtifactError(
                f"{origin} was made by a newer y7edge (manifest schema {schema}, this one reads up "
                f"to {SCHEMA}): update y7edge, or export again with this version"
            )
        where = f"the manifest of {origin} cannot be used"
        try:
            _check_texts(data)
            current = _from_schema_1(data) if schema == 1 else data
        except (ArtifactError, ValueError) as error:
            raise ArtifactError(f"{where}: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise ArtifactError(f"{where}: schema 1 requires an entry {error}") from error
        return decode(Manifest, current, origin=where, error=ArtifactError)


_CHANGED = (
    "the manifest of {} was changed after it was proved: its digest does not match; export it "
    "again, or take the original file"
)


def expected_shapes(
    image: InputInfo, levels: tuple[LevelInfo, ...], nc: int
) -> dict[str, tuple[Dim, ...]]:
    """Return the output shapes by name: ``head0``... in NCHW, ``boxes``, ``scores``..."""
    shapes: dict[str, tuple[Dim, ...]] = {}
    candidates = 0
    for index, level in enumerate(levels):
        rows, columns = image.height // level.stride, image.width // level.stride
        anchors = len(level.anchors)
        shapes[f"head{index}"] = (image.batch, anchors * (5 + nc), rows, columns)
        candidates += anchors * rows * columns
    shapes["boxes"] = (image.batch, candidates, 4)
    shapes["scores"] = (image.batch, candidates, nc)
    shapes["detections"] = ("dynamic", 7)
    return shapes


def in_layout(nchw: tuple[Dim, ...], layout: str) -> tuple[Dim, ...]:
    """Return a shape with the channels moved to the end if ``layout`` is NHWC."""
    return (nchw[0], *nchw[2:], nchw[1]) if layout == "NHWC" else nchw


def _from_schema_1(data: dict[str, Any]) -> dict[str, Any]:
    """Convert a manifest of schema 1: add activations, drop unused fields."""
    image = data["input"]
    return {
        **data,
        "schema": SCHEMA,
        "input": {**image, "letterbox": {"pad": image["letterbox"]["pad"]}},
        "outputs": [
            {**output, "activation": "logit" if output["role"] == "head" else None}
            for output in data["outputs"]
        ],
    }


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise ArtifactError(problem)


def _check_lengths(what: str, names: Iterable[str]) -> None:
    fits = all(len(name) <= bounds.MAX_NAME for name in names)
    _check(fits, f"a {what} has more than {bounds.MAX_NAME} characters")


def _check_texts(value: Any) -> None:
    """Raise ArtifactError if a text in parsed JSON contains unprintable characters."""
    for text in texts(value):
        if not is_printable(text):
            raise ArtifactError(f"{text[:64]!r} contains a character that cannot be printed")


# --- canonical JSON ------------------------------------------------------------------------------


def _canonical(data: Mapping[str, Any]) -> str:
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(body).encode()).hexdigest()


def _parse(text: str | bytes, origin: str) -> dict[str, Any]:
    """Parse a manifest's JSON object; raise DigestError unless its bytes are canonical."""
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) > MAX_BYTES:
        raise ArtifactError(
            f"the manifest of {origin} has {len(raw)} bytes, expected at most {MAX_BYTES}"
        )
    try:
        data = parse(raw.decode())
        # Refuse other spellings of the same content, such as 1E-05 for 1e-05 or a repeated key.
        unchanged = isinstance(data, dict) and _canonical(data).encode() == raw
    except (ValueError, RecursionError) as error:
        raise DigestError(_CHANGED.format(origin)) from error
    if not unchanged:
        raise DigestError(_CHANGED.format(origin))
    checked: dict[str, Any] = data
    return checked
