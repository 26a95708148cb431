"""Checks of pictures: damage, rotation, size, format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from y7edge.data.check.geometry import grade
from y7edge.data.check.registry import Checks, Hit, Run
from y7edge.data.check.unreferenced import UNREAD_SUFFIXES
from y7edge.data.formats.records import Picture, Scan

CHECKS = Checks()

_DROPPED = "the picture is left out"
_LARGE = 89  # megapixels; from here on Pillow warns
LEAST_SIDE = 10  # the published reader drops smaller ones
_FORMATS = {
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".mpo": {"JPEG", "MPO"},
    ".png": {"PNG"},
    ".bmp": {"BMP", "DIB"},
    ".webp": {"WEBP"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".pgm": {"PPM"},
    ".ppm": {"PPM"},
}
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp"}
SUFFIXES |= {"TIFF": ".tif", "PPM": ".ppm", "DIB": ".bmp"}
_MODES = {
    "CMYK": "is CMYK, converted to RGB without a colour profile",
    "P": "has a palette",
    "1": "is black and white, 1 bit",
    "RGBA": "has transparency, which is dropped: what shows behind it may surprise",
    "LA": "has transparency, which is dropped: what shows behind it may surprise",
    "PA": "has transparency, which is dropped: what shows behind it may surprise",
}


def _each(run: Callable[[Picture], str]) -> Run:
    """A check that has at most one thing to say of each picture."""

    def over_all(scan: Scan) -> Iterator[Hit]:
        for picture in scan.pictures.values():
            if words := run(picture):
                yield Hit(words, picture.path, picture=picture.path)

    return over_all


def _damaged(kind: str) -> Run:
    def words(picture: Picture) -> str:
        facts = picture.facts
        return f"{facts.fault}; restore or remove it" if facts.kind == kind else ""

    return _each(words)


CHECKS.add("empty_picture", "error", "empty picture files", _DROPPED)(_damaged("empty"))
CHECKS.add("unreadable_picture", "error", "picture files that cannot be opened", _DROPPED)(
    _damaged("unreadable")
)
CHECKS.add("truncated_picture", "error", "pictures that are cut off", _DROPPED)(
    _damaged("truncated")
)
CHECKS.add("corrupt_picture", "error", "damaged pictures, or other files in their place", _DROPPED)(
    _damaged("corrupt")
)


@CHECKS.add("suspicious_picture", "warning", "pictures that decode but show signs of damage")
@_each
def _suspicious(picture: Picture) -> str:
    return f"{picture.facts.doubt}; look at it" if picture.facts.doubt else ""


@CHECKS.add("plain_picture", "warning", "pictures of one colour only")
@_each
def _plain(picture: Picture) -> str:
    return "shows nothing: every pixel has the same colour" if picture.facts.flat else ""


@CHECKS.add("tiny_picture", "error", f"pictures with a side below {LEAST_SIDE} pixels", _DROPPED)
@_each
def _tiny(picture: Picture) -> str:
    size = picture.facts.size
    if size is None or min(size) >= LEAST_SIDE:
        return ""
    return f"is {size[0]}x{size[1]} pixels: nothing can be seen on it; remove it"


@CHECKS.add("large_picture", "info", "very large pictures")
@_each
def _large(picture: Picture) -> str:
    pixels = math.prod(picture.facts.size or (0, 0)) / 1e6
    many = f"has {pixels:.0f} megapixels, decoded in every epoch: cut it into tiles?"
    return many if pixels > _LARGE else ""


def boxes_in_stored_frame(picture: Picture) -> bool:
    """Whether the annotation counts in the picture as stored, without its EXIF rotation."""
    facts = picture.facts
    if not facts.turned or facts.stored is None or facts.stored[0] == facts.stored[1]:
        return False
    if picture.stated is not None:
        return picture.stated == facts.stored
    return _whole_pixels(picture, facts.stored) and not _whole_pixels(picture, facts.stored[::-1])


def _whole_pixels(picture: Picture, size: tuple[int, int]) -> bool:
    """Whether all corners, counted in a frame of this size, fall on whole pixels.

    Labels drawn with a mouse do in the frame that they were drawn in, and by chance in no other.
    """
    found = 0
    for label in picture.labels:
        box = grade(label, picture).box
        if box is None or label.form != "box":
            continue
        found += 1
        for value, side in zip(box, (*size, *size), strict=True):
            # Numbers printed with six digits are right to 1e-6 of the side.
            if abs(value * side - round(value * side)) > 2e-6 * side + 1e-3:
                return False
    return found >= 2


@CHECKS.add("rotation", "warning", "pictures with an EXIF rotation",
       "stored upright; boxes turned too where they were made without the rotation")  # fmt: skip
def _rotation(scan: Scan) -> Iterator[Hit]:
    for picture in scan.pictures.values():
        facts, stated = picture.facts, picture.stated
        if facts.orientation == 1 or facts.size is None or facts.stored is None:
            continue
        what = f"the camera noted a rotation (EXIF orientation {facts.orientation})"
        hit = Hit("", picture.path, picture=picture.path)
        if boxes_in_stored_frame(picture):
            evidence = (
                f"the annotation states {stated[0]:g}x{stated[1]:g}, the picture as stored"
                if stated
                else f"their corners are whole pixels of {facts.stored[0]}x{facts.stored[1]} only"
            )
            words = f"{what}, but the boxes were made without it: {evidence}; turn them"
            yield hit._replace(message=words, severity="error")
        elif facts.turned and stated == facts.size:
            words = f"{what}; the annotation's size agrees with the picture shown upright"
            yield hit._replace(message=words, severity="info")
        else:
            words = (
                f"{what}: training shows it upright as {facts.size[0]}x{facts.size[1]}; nothing "
                "says whether the boxes were made so: look at it, then store it upright"
            )
            yield hit._replace(message=words)


@CHECKS.add("size", "error", "sizes in annotations that disagree with the picture",
       "the picture's own size is used if all boxes fit it, else it is left out")  # fmt: skip
def _size(scan: Scan) -> Iterator[Hit]:
    for picture in scan.pictures.values():
        size, stated, file = picture.facts.size, picture.stated, picture.label_file
        if size is None or stated is None or file is None or stated == size:
            continue
        if boxes_in_stored_frame(picture):
            continue  # said by the check of rotations
        found = f"states {stated[0]:g}x{stated[1]:g}, {picture.path.name} is {size[0]}x{size[1]}"
        hit = Hit(f"{found}: correct it", file, picture=picture.path)
        if min(stated) <= 0:
            yield hit._replace(message=f"{found}; the picture's is used", severity="warning")
        elif stated == size[::-1]:
            yield hit._replace(message=f"{found}: width and height are exchanged")
        elif abs(stated[0] * size[1] / (stated[1] * size[0]) - 1) < 0.01:
            words = f"{found}: same shape, so the boxes may still fit; look at them"
            yield hit._replace(message=words, severity="warning")
        else:
            yield hit


@CHECKS.add("suffix", "warning", "suffixes that disagree with the real format",
       "copied under the right suffix")  # fmt: skip
@_each
def _suffix(picture: Picture) -> str:
    ending, real = picture.path.suffix.lower(), picture.facts.format
    if not real or real in _FORMATS.get(ending, {real}):
        return ""
    return f"is a {real}, called {picture.path.suffix}; rename it"


@CHECKS.add("mode", "info", "pictures of an unusual kind")
@_each
def _mode(picture: Picture) -> str:
    facts = picture.facts
    found = [_MODES[facts.mode]] if facts.mode in _MODES else []
    if facts.mode.startswith(("I", "F")):
        found.append(f"has more than 8 bits (mode {facts.mode}), scaled or cut to 8")
    if facts.frames > 1:
        found.append(f"holds {facts.frames} pictures ({facts.format}); the first one counts")
    return "; ".join(found)


@CHECKS.add("ignored", "warning", "pictures in formats that are not read")
def _ignored(scan: Scan) -> Iterator[Hit]:
    for path in scan.ignored:
        if path.suffix.lower() in UNREAD_SUFFIXES:
            yield Hit(f"{path.suffix} files are not read; convert it to JPEG or PNG", path)
        else:
            kind = f"called {path.suffix}" if path.suffix else "without a suffix"
            yield Hit(f"is a picture {kind}, so it is not read; rename it", path)
