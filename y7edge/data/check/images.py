"""Checks of images: damage, rotation, size, format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from y7edge.data.check.registry import Checks, Hit, Run
from y7edge.data.formats.records import Entry, Scan

CHECKS = Checks()

_DROPPED = "the image is left out"
_LARGE = 89  # megapixels; from here on Pillow warns
_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), ("JPEG", "MPO")),
    **dict.fromkeys((".bmp", ".dib"), ("BMP", "DIB")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".pbm", ".pgm", ".pnm", ".ppm"), ("PPM",)),
    **dict.fromkeys((".ras", ".sr"), ("SUN",)),
    **{".png": ("PNG",), ".webp": ("WEBP",), ".jp2": ("JPEG2000",)},
}
# The first suffix of each is what `--fix` calls it.
SUFFIXES = {kind: suffix for suffix, kinds in reversed(_FORMATS.items()) for kind in kinds}
SUFFIXES["PPM"] = ".ppm"
_MODES = {
    "CMYK": "is CMYK, converted to RGB without a colour profile",
    "P": "has a palette",
    "1": "is black and white, 1 bit",
    "RGBA": "has transparency, which is dropped: what shows behind it may surprise",
    "LA": "has transparency, which is dropped: what shows behind it may surprise",
    "PA": "has transparency, which is dropped: what shows behind it may surprise",
}


def _each(run: Callable[[Entry], str]) -> Run:
    """A check that has at most one thing to say of each image."""

    def over_all(scan: Scan) -> Iterator[Hit]:
        for entry in scan.entries:
            if words := run(entry):
                yield Hit(words, entry.path, image=entry.path)

    return over_all


def _damaged(kind: str) -> Run:
    def words(entry: Entry) -> str:
        facts = entry.facts
        return f"{facts.fault}; restore or remove it" if facts.kind == kind else ""

    return _each(words)


CHECKS.add("empty_image", "error", "empty image files", _DROPPED)(_damaged("empty"))
CHECKS.add("unreadable_image", "error", "image files that cannot be opened", _DROPPED)(
    _damaged("unreadable")
)
CHECKS.add("truncated_image", "error", "images that are cut off", _DROPPED)(_damaged("truncated"))
CHECKS.add("corrupt_image", "error", "damaged images, or other files in their place", _DROPPED)(
    _damaged("corrupt")
)


@CHECKS.add("suspicious_image", "warning", "images that decode but show signs of damage")
@_each
def _suspicious(entry: Entry) -> str:
    return f"{entry.facts.doubt}; look at it" if entry.facts.doubt else ""


@CHECKS.add("plain_image", "warning", "images of one colour only")
@_each
def _plain(entry: Entry) -> str:
    return "shows nothing: every pixel has the same colour" if entry.facts.flat else ""


@CHECKS.add("large_image", "info", "very large images")
@_each
def _large(entry: Entry) -> str:
    pixels = math.prod(entry.size or (0, 0)) / 1e6
    many = f"has {pixels:.0f} megapixels, decoded in every epoch: cut it into tiles?"
    return many if pixels > _LARGE else ""


@CHECKS.add("rotation", "warning", "images with an EXIF rotation", "stored upright")
def _rotation(scan: Scan) -> Iterator[Hit]:
    for entry in scan.entries:
        frame = entry.frame
        # Boxes that were made without it are a problem that the parser notes.
        if frame is None or frame.orientation == 1 or entry.in_stored_frame:
            continue
        what = f"the camera noted a rotation (EXIF orientation {frame.orientation})"
        hit = Hit("", entry.path, image=entry.path)
        if frame.turned and entry.stated == frame.size:
            words = f"{what}; the annotation's size agrees with the upright image"
            yield hit._replace(message=words, severity="info")
        else:
            words = f"{what}: training reads it upright as {frame.size[0]}x{frame.size[1]}; "
            words += (
                "nothing says whether the boxes were made so: look at it, then store it upright"
            )
            yield hit._replace(message=words)


_FEW_LEVELS = 64  # of 256


@CHECKS.add("low_contrast", "warning", "16-bit images of which few grey levels are left",
       "scaled to 8 bits by one rule, noted in the data.yaml")  # fmt: skip
def _low_contrast(scan: Scan) -> Iterator[Hit]:
    if levels := levels_in_use(scan):
        low, high = levels
        words = f"its 16-bit images use the levels {low} to {high} of 65535, of which "
        words += f"{(high >> 8) - (low >> 8) + 1} are left in 8 bits; scale all by one rule: write "
        yield Hit(f"{words}'levels: [{low}, {high}]' into a data.yaml, or use --fix", scan.source)


def levels_in_use(scan: Scan) -> tuple[int, int] | None:
    """The range that the 16-bit images of a set use together, if it is a small one and no rule."""
    if scan.levels:
        return None
    found = [entry.facts.levels for entry in scan.entries if entry.facts.levels]
    low, high = (min(lo for lo, _ in found), max(hi for _, hi in found)) if found else (0, 65535)
    return (low, high) if (high >> 8) - (low >> 8) + 1 < _FEW_LEVELS else None


def is_called(kind: str, path: Path) -> bool:
    """Whether a file's suffix is one of its format; true of suffixes that no format has."""
    return kind in _FORMATS.get(path.suffix.lower(), (kind,))


@CHECKS.add("suffix", "warning", "suffixes that disagree with the real format",
       "copied under the right suffix")  # fmt: skip
@_each
def _suffix(entry: Entry) -> str:
    real = entry.facts.format
    if not real or is_called(real, entry.path):
        return ""
    return f"is a {real}, called {entry.path.suffix}; rename it"


@CHECKS.add("mode", "info", "images of an unusual kind")
@_each
def _mode(entry: Entry) -> str:
    facts = entry.facts
    found = [_MODES[facts.mode]] if facts.mode in _MODES else []
    if facts.mode.startswith(("I", "F")):
        found.append(f"has more than 8 bits (mode {facts.mode}), scaled or cut to 8")
    if facts.several:
        found.append(f"holds several images ({facts.format}); the first one counts")
    return "; ".join(found)
