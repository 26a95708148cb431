"""Checks of images: damage, rotation, size, format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from y7edge.data.check.registry import Checks, Hit, Run
from y7edge.data.formats.records import Entry, Scan

CHECKS = Checks()

_LARGE = 89  # megapixels; Pillow warns about larger images
_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), ("JPEG", "MPO")),
    **dict.fromkeys((".bmp", ".dib"), ("BMP", "DIB")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".pbm", ".pgm", ".pnm", ".ppm"), ("PPM",)),
    **dict.fromkeys((".ras", ".sr"), ("SUN",)),
    **{".png": ("PNG",), ".webp": ("WEBP",), ".jp2": ("JPEG2000",)},
}
# The suffix that `--fix` gives a file of each format: the first one above.
SUFFIXES = {kind: suffix for suffix, kinds in reversed(_FORMATS.items()) for kind in kinds}
SUFFIXES["PPM"] = ".ppm"
_MODES = {
    "CMYK": "is CMYK; it is converted to RGB without a colour profile",
    "P": "has a palette",
    "1": "is black and white, 1 bit",
    **dict.fromkeys(("RGBA", "LA", "PA"), "has transparency, which is dropped; check its colours"),
}


def _each(run: Callable[[Entry], str]) -> Run:
    """Make a check from a function that returns a message about an image, or an empty string."""

    def over_all(scan: Scan) -> Iterator[Hit]:
        for entry in scan.entries:
            if words := run(entry):
                yield Hit(words, entry.path, image=entry.path)

    return over_all


def _damaged(kind: str) -> Run:
    """Make a check that reports one kind of damaged images."""

    def words(entry: Entry) -> str:
        facts = entry.facts
        return f"{facts.fault}; restore or remove it" if facts.kind == kind else ""

    return _each(words)


for _kind, _title in (
    ("empty", "empty image files"),
    ("unreadable", "image files that cannot be opened"),
    ("truncated", "truncated images"),
    ("corrupt", "damaged images, and files that are not images"),
):
    CHECKS.add(f"{_kind}_image", "error", _title, "the image is left out")(_damaged(_kind))


@CHECKS.add("suspicious_image", "warning", "images that decode, with signs of damage")
@_each
def _suspicious(entry: Entry) -> str:
    return f"{entry.facts.doubt}; inspect it" if entry.facts.doubt else ""


@CHECKS.add("plain_image", "warning", "images of a single colour")
@_each
def _plain(entry: Entry) -> str:
    return "every pixel has the same colour; remove it" if entry.facts.flat else ""


@CHECKS.add("large_image", "info", "very large images")
@_each
def _large(entry: Entry) -> str:
    pixels = math.prod(entry.size or (0, 0)) / 1e6
    words = f"has {pixels:.0f} megapixels, which slow down training; consider cutting it into tiles"
    return words if pixels > _LARGE else ""


@CHECKS.add("rotation", "warning", "images with an EXIF rotation", "stored upright")
def _rotation(scan: Scan) -> Iterator[Hit]:
    for entry in scan.entries:
        frame = entry.frame
        # Boxes that were drawn without the rotation are reported by `geometry.place`.
        if frame is None or frame.orientation == 1 or entry.in_stored_frame:
            continue
        what = f"has an EXIF rotation (orientation {frame.orientation})"
        hit = Hit("", entry.path, image=entry.path)
        if frame.turned and entry.stated == frame.size:
            words = f"{what}; the size in its annotation is that of the upright image"
            yield hit._replace(message=words, severity="info")
        else:
            words = f"{what}; training reads it upright, {frame.size[0]}x{frame.size[1]}: "
            words += "check that its boxes fit, then store it upright"
            yield hit._replace(message=words)


_FEW_LEVELS = 64  # of 256 grey levels


@CHECKS.add("low_contrast", "warning", "16-bit images that keep few grey levels in 8 bits",
       "scaled to 8 bits, with the levels in the data.yaml")  # fmt: skip
def _low_contrast(scan: Scan) -> Iterator[Hit]:
    if levels := levels_in_use(scan):
        low, high = levels
        words = f"its 16-bit images use the levels {low} to {high} of 65535, which become "
        words += f"{(high >> 8) - (low >> 8) + 1} levels in 8 bits; write "
        yield Hit(f"{words}'levels: [{low}, {high}]' into a data.yaml, or use --fix", scan.source)


def levels_in_use(scan: Scan) -> tuple[int, int] | None:
    """Return the lowest and highest value of all 16-bit images if few grey levels remain in 8 bits.

    Return None if enough levels remain, or if the ``data.yaml`` sets ``levels``.
    """
    if scan.levels:
        return None
    found = [entry.facts.levels for entry in scan.entries if entry.facts.levels]
    low, high = (min(lo for lo, _ in found), max(hi for _, hi in found)) if found else (0, 65535)
    return (low, high) if (high >> 8) - (low >> 8) + 1 < _FEW_LEVELS else None


def is_called(kind: str, path: Path) -> bool:
    """Return whether a file has a suffix of the format ``kind``; True for unknown suffixes."""
    return kind in _FORMATS.get(path.suffix.lower(), (kind,))


@CHECKS.add("suffix", "warning", "suffixes that do not match the file's format",
       "copied with the right suffix")  # fmt: skip
@_each
def _suffix(entry: Entry) -> str:
    real = entry.facts.format
    if not real or is_called(real, entry.path):
        return ""
    return f"is a {real} file with the suffix {entry.path.suffix}; rename it"


@CHECKS.add("mode", "info", "images with an unusual pixel format, or several images in a file")
@_each
def _mode(entry: Entry) -> str:
    facts = entry.facts
    found = [_MODES[facts.mode]] if facts.mode in _MODES else []
    if facts.mode.startswith(("I", "F")):
        found.append(f"has more than 8 bits (mode {facts.mode}), scaled or clipped to 8")
    if facts.several:
        found.append(f"contains several images ({facts.format}); only the first is used")
    return "; ".join(found)
