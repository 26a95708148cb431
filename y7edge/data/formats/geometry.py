"""Where the box of each label lies, and what is wrong with it: decided once, for all formats."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from y7edge.data.formats.coco import hull_of, overlap, parts_of
from y7edge.data.formats.records import LEAST_SIDE, RESPELLED, Corners, Entry, Label, Points, Scan
from y7edge.data.headers import read_frame, too_large
from y7edge.errors import DataError

# Printed labels are rounded: a box sticks out only beyond this fraction of the image.
ROUNDING = 1e-3
NO_AREA = 1e-6
# No rounding or sloppy box reaches this many image sizes: such numbers are pixels.
_SURELY_PIXELS = 4.0
_LARGEST = 1e9  # pixels
# In larger images labels up to 100 may be percent: those in pixels would mostly reach further.
_BEYOND_PERCENT = 128
# An outline that shares less than this of its hull with its box belongs to something else.
_SAME_EXTENT = 0.5
_SLACK = 0.02  # of a side, by which boxes drawn loosely leave an image


def measure(scan: Scan) -> None:
    """Read the size and rotation of every image from its header."""
    for entry in scan.entries:
        scan.watch.note(entry.path)
        try:
            entry.frame = frame = read_frame(entry.path)
        except DataError as error:
            words = str(error).removeprefix(f"{entry.path}: ")
            needed = scan.layout != "yolo" and _stated(entry) is None
            if needed:
                words += "; nor does its annotation state a size"
            scan.problem("header", words, entry.path,
                         image=entry.path, effect="refused" if needed else "changed")  # fmt: skip
            continue
        if words := too_large(*frame.stored, frame.pixels):
            scan.problem("pixel_count", words, entry.path, image=entry.path)
        if entry.tiny:
            words = (
                f"is {frame.size[0]}x{frame.size[1]} pixels: nothing can be seen on it; remove it"
            )
            scan.problem("tiny_image", words, entry.path, image=entry.path)


def place(scan: Scan) -> None:
    """Give every label its box, and note what is wrong."""
    stored = _stored_frames(scan)
    for entry in scan.entries:
        entry.in_stored_frame = id(entry) in stored
        if entry.in_stored_frame and entry.labels:
            words = "its boxes were made without the rotation that the camera noted (EXIF): turned"
            scan.problem("rotation", words, entry.path, image=entry.path)
        scale = _scale(scan, entry)
        for label in entry.labels:
            _grade(scan, entry, label, scale)
        _find_repeats(scan, entry)
    _settle_percent(scan)


def _stated(entry: Entry) -> tuple[float, float] | None:
    """The size that the annotation states, if it can be one."""
    return entry.stated if entry.stated and min(entry.stated) > 0 else None


def _scale(scan: Scan, entry: Entry) -> tuple[float, float] | None:
    """The size that pixel labels are divided by; problems with the stated one are noted.

    Where an annotation states another size than the image has, it is believed only if both have
    the same proportions: then the image was scaled, and labels keep to what they were made for.
    """
    frame, stated, file = entry.frame, _stated(entry), entry.label_file or entry.path
    if scan.layout == "yolo":
        return None
    if frame is None:
        return stated
    size = frame.stored if entry.in_stored_frame else frame.size
    if entry.stated is None or entry.stated == size:
        return size
    found = f"states {entry.stated[0]:g}x{entry.stated[1]:g}, {entry.path.name} is "
    found += f"{size[0]}x{size[1]}"
    if stated is None:
        words = f"{found}; the image's is used"
        scan.problem("size", words, file,
                     image=entry.path, effect="advice", severity="warning")  # fmt: skip
        return size
    if frame.turned and stated in (frame.size, frame.stored):
        return size  # tools disagree on whether they state the size before the rotation
    # Scaling rounds both sides to whole pixels.
    slack = max(stated[0], size[0]) + max(stated[1], size[1])
    if abs(stated[0] * size[1] - stated[1] * size[0]) <= slack:
        scan.problem("rescaled", f"{found}: same shape", file, image=entry.path)
        return stated
    exchanged = stated == size[::-1]
    words = f"{found}: {'width and height are exchanged' if exchanged else 'correct it'}"
    if all(_inside(label, size) for label in entry.labels):
        scan.problem("size", words, file, image=entry.path)
    else:
        words += "; its boxes do not fit the image, so that their frame is unknown"
        scan.problem("size", words, file, image=entry.path, effect="refused")
        entry.lost = "has boxes in a frame of another size"
    return size


def _inside(label: Label, size: tuple[int, int], slack: float = 0.0) -> bool:
    """Whether a box in pixels lies within a frame; true of numbers that are not a box."""
    box = _pixel_corners(label)
    if box is None:
        return True
    wide, high = (side * slack + 1 for side in size)
    return min(box[0] + wide, box[1] + high) >= 0 and (
        box[2] <= size[0] + wide and box[3] <= size[1] + high
    )


def _pixel_corners(label: Label) -> Corners | None:
    values = label.values
    if values is None or len(values) != 4 or not all(map(math.isfinite, values)):
        return None
    a, b, c, d = values
    return (a, b, a + c, b + d) if label.form == "sides" else (a, b, c, d)


def _stored_frames(scan: Scan) -> set[int]:
    """Ids of entries whose boxes count in the image as stored, without the EXIF rotation.

    What an annotation states proves nothing: tools state either size. Boxes that fit one frame and
    leave the other are, for all rotated images of the set; where there are none, or both, boxes are
    those of the upright image.
    """
    turned = [
        (entry, entry.frame)
        for entry in scan.entries
        if entry.frame is not None and entry.frame.turned and len(set(entry.frame.size)) == 2
    ]
    if scan.layout == "yolo":
        return {id(entry) for entry, frame in turned if _whole_pixels(entry, frame.stored)
                and not _whole_pixels(entry, frame.size)}  # fmt: skip
    found: list[tuple[Entry, bool]] = []
    for entry, frame in turned:
        if entry.labels and _stated(entry) in (None, frame.size, frame.stored):
            upright, stored = (
                all(_inside(label, size, _SLACK) for label in entry.labels)
                for size in (frame.size, frame.stored)
            )
            found += [(entry, stored)] if upright != stored else []
    votes = Counter(stored for _, stored in found)
    if votes[True] and votes[False]:
        for entry, stored in found:
            words = "images of this set are rotated (EXIF), and some boxes fit them only with the "
            words += f"rotation, these only with{'out' if stored else ''} it: correct them"
            scan.problem("rotation", words, entry.path,
                         image=entry.path, effect="refused", doubtful=True)  # fmt: skip
    # The size that is stated must not speak for the other one.
    stored_only = votes[True] and not votes[False]
    return {id(e) for e, f in turned if stored_only and _stated(e) in (None, f.stored, f.size)}


def _whole_pixels(entry: Entry, size: tuple[int, int]) -> bool:
    """Whether all corners, counted in a frame of this size, fall on whole pixels.

    Labels drawn with a mouse do in the frame that they were drawn in, and rarely in another.
    """
    found = 0
    for label in entry.labels:
        if label.form != "box" or label.values is None or len(label.values) != 4:
            continue
        found += 1
        for value, side in zip(_shares(label, label.values), (*size, *size), strict=True):
            # Numbers printed with six digits are right to 1e-6 of the side.
            distance = abs(value * side - round(value * side)) if math.isfinite(value) else 1.0
            if distance > 2e-6 * side + 1e-3:
                return False
    return found >= 2


def _shares(label: Label, values: Sequence[float]) -> Corners:
    """Corners of a label in centre, width and height, or the hull of a polygon."""
    if label.form == "polygon":
        xs, ys = values[0::2], values[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    cx, cy, w, h = values
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def _grade(scan: Scan, entry: Entry, label: Label, scale: tuple[float, float] | None) -> None:
    """Find the first thing wrong with a label, and its box: as read, or repaired."""
    if _unreadable(scan, entry, label):
        return
    values = label.values or ()
    if label.form in ("corners", "sides"):
        _grade_pixels(scan, entry, label, scale)
    else:
        _grade_shares(scan, entry, label, values)
    if label.box is not None and not label.fault and not label.crowd:
        _grade_place(scan, entry, label, label.box)
    _take_outline(scan, entry, label, scale)
    if entry.in_stored_frame and entry.frame is not None and label.box is not None:
        turn = entry.frame.orientation
        label.parts = [turned(part, turn) for part in label.parts]
        corners = turned(np.array(label.box).reshape(2, 2), turn)
        label.box = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def _note(scan: Scan, entry: Entry, label: Label, check: str, words: str, **other: object) -> None:
    words = f"{label.item}: {words}" if label.item else words
    other |= {"image": entry.path, "box": label.box}
    scan.problem(check, words, label.file, label.line, **other)
    if check != "separators" and not (check == "class_number" and label.named):
        label.fault = check
    label.refused |= scan.problems[-1].effect == "refused"


def _unreadable(scan: Scan, entry: Entry, label: Label) -> bool:
    """Note a class or numbers that mean nothing; whether its numbers do not."""
    values, text, reason = label.values, f"'{label.text[:60]}'", label.fault
    wanted = {"corners": "xmin, ymin, xmax, ymax as numbers"}.get(label.form, "numbers")
    if label.form == "sides":
        wanted, text = "bbox as four finite numbers", reprlib.repr(label.raw.get("bbox"))
    label.fault = ""
    if label.class_id is None or label.named or not scan.has_class(label.class_id):
        _note_class(scan, entry, label)
        if label.fault:
            return True  # columns in another order: its numbers mean nothing
    if label.repaired == RESPELLED:
        words = f"{text} has commas or semicolons; numbers need points and spaces between them"
        _note(scan, entry, label, "separators", words)
    if values is None:
        hint = "; numbers need a point and spaces between them" if "," in text else ""
        hint = hint if label.form in ("box", "polygon") else ""
        _note(scan, entry, label, "number", f"expected {wanted}, found {text}{hint}")
    elif not all(map(math.isfinite, values)) or max(map(abs, values), default=0) >= _LARGEST:
        kind = wanted if label.form == "sides" else "finite numbers"
        _note(scan, entry, label, "not_finite", f"expected {kind}, found {text}; remove it")
    elif len(values) != 4 and label.form != "polygon":
        words = f"expected {wanted}, found {text}"
        if label.form == "box":
            words = "expected 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...', found "
            words += f"{len(values) + 1} numbers: {text}"
            if reason:
                words += f"; they seem to be a box with further columns ({reason}): for keypoints "
                words += "write kpt_shape: [K, D] in the data.yaml, else remove the columns"
            elif len(values) == 5:
                words += "; a sixth column is mostly a confidence: these are predictions"
            elif len(values) > 5:
                words += "; keypoints need kpt_shape: [K, D] in the data.yaml"
        _note(scan, entry, label, "columns", words)
    else:
        return False
    return True


def _note_class(scan: Scan, entry: Entry, label: Label) -> None:
    text, count, found = label.text[:60], scan.classes, label.raw_class[:60]
    if scan.layout != "yolo":
        known = ", ".join(scan.names[:8]) + (", ..." if len(scan.names) > 8 else "")
        key, found = (
            ("category_id to be the id of ", found) if scan.layout == "coco" else ("", f"'{found}'")
        )
        words = f"expected {key}one of the classes {known or '(there are none)'}, found {found}"
        words += "; correct it, or add the class"
        check = "class_range" if label.raw_class else "name_empty"
        _note(scan, entry, label, check, words, effect="refused", severity="error")
    elif label.named:
        words = f"expected numbers, found '{text}'; {found} is {label.class_id}"
        _note(scan, entry, label, "class_number", words)
    elif label.class_id is None:
        words = f"expected numbers, found '{text}'"
        if found.replace(".", "", 1).isdigit():
            words = f"expected a class from 0 to {count - 1}, found {found}: '{text}'"
        last = label.text.split()[-1].isdigit()
        hint = "does it stand last?" if last else "correct or remove the line"
        hint = "numbers need a point and spaces between them" if "," in label.text else hint
        _note(scan, entry, label, "class_number", f"{words}; {hint}")
    else:
        way = "the line or the names of the data.yaml"
        if label.class_id < 0:
            way = "or remove the line, as classes count from 0"
        words = f"expected a class from 0 to {count - 1}, found {label.class_id}; correct {way}"
        _note(scan, entry, label, "class_range", words)


def _grade_shares(scan: Scan, entry: Entry, label: Label, values: Sequence[float]) -> None:
    size, largest = entry.size, max(map(abs, values))
    box = _shares(label, values)
    if largest > _SURELY_PIXELS:
        label.box = _divided(box, size)
        known = f" ({size[0]}x{size[1]})" if size else ""
        words = "expected fractions of the image's size (0 to 1), found "
        words += f"{max(values, key=abs):g}; divide pixels by the image's width and height{known}"
        _note(scan, entry, label, "pixels", words)
        return
    label.box = box
    if label.form == "polygon":
        label.parts = [np.array((values[0::2], values[1::2]), np.float64).T]
    elif size is not None and values[0] <= 1 / size[0] and values[1] <= 1 / size[1]:
        _find_twice(scan, entry, label, tuple(v * s for v, s in zip(box, size * 2, strict=True)))


def _grade_pixels(
    scan: Scan, entry: Entry, label: Label, scale: tuple[float, float] | None
) -> None:
    box = _pixel_corners(label)
    if scale is None or box is None:
        return
    wide, high = scale
    label.box = (box[0] / wide, box[1] / high, box[2] / wide, box[3] / high)
    if entry.size:  # of the image, which may have been scaled since it was labelled
        _find_twice(scan, entry, label, np.multiply(label.box, entry.size * 2).tolist())


def _find_twice(scan: Scan, entry: Entry, label: Label, pixels: Sequence[float]) -> None:
    """Note a box that makes sense as fractions although it should be pixels, or the reverse.

    A box of whole pixels may really be a dot in the corner.
    """
    size = entry.size
    if size is None or min(size) < LEAST_SIDE or label.crowd:
        return
    # What lies beyond the corner would be clipped, and then be in the first pixel all the same.
    (x1, x2), (y1, y2) = (sorted(max(v, 0.0) for v in pixels[axis::2]) for axis in (0, 1))
    box = (x1, y1, x2, y2)
    whole = all(abs(value - round(value)) < 1e-2 for value in box)
    if not whole and max(box) <= 1 + ROUNDING and min(x2 - x1, y2 - y1) > ROUNDING:
        label.box = box
        words = f"'{label.text[:60]}' lies within the first pixel of the image: "
        words += "divided by its size once too often? Multiply by width and height"
        _note(scan, entry, label, "twice", words)


def _grade_place(scan: Scan, entry: Entry, label: Label, box: Corners) -> None:
    """Compare a box with the image, as every box that training reads."""
    text = label.text[:60]
    if box[2] < box[0] or box[3] < box[1]:
        x, y = sorted((box[0], box[2])), sorted((box[1], box[3]))
        label.box = box = (x[0], y[0], x[1], y[1])
        if _has_area(box):
            words = f"width or height is negative (corners exchanged?): '{text}'; put right"
            _note(scan, entry, label, "negative", words)
    if not _has_area(box):
        words = f"the box has no area: '{text}'; remove it"
        _note(scan, entry, label, "no_area", words)
    elif not _has_area(clip(box)):
        words = f"the box lies outside the image: '{text}'; remove or correct it"
        _note(scan, entry, label, "outside", words)
    elif max(abs(a - b) for a, b in zip(box, clip(box), strict=True)) > ROUNDING:
        values = label.values or ()
        if label.form in ("box", "polygon") and not (
            min(values) >= -ROUNDING and max(values) <= 1 + ROUNDING
        ):
            words = f"expected fractions from 0 to 1, found '{text}'; correct or clip it"
            _note(scan, entry, label, "range", words)
            return
        beyond = max(-min(box), max(box) - 1)
        words = f"sticks out of the image by {beyond:.1%} of its side: '{text}'; clip it"
        _note(scan, entry, label, "sticks_out", words)


def clip(box: Corners) -> Corners:
    """The part of a box within the image."""
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box)
    return x1, y1, x2, y2


def _has_area(box: Corners) -> bool:
    return box[2] - box[0] > NO_AREA and box[3] - box[1] > NO_AREA


def _divided(box: Corners, size: tuple[int, int] | None) -> Corners | None:
    """Corners of a label in pixels, if they fit into the image; else its numbers are lost."""
    if size is None:
        return None
    x1, y1, x2, y2 = (value / side for value, side in zip(box, size * 2, strict=True))
    fits = min(x1, y1) > -_SLACK and max(x2, y2) < 1 + _SLACK and _has_area((x1, y1, x2, y2))
    return (x1, y1, x2, y2) if fits else None


def used(label: Label, *, repaired: bool = False) -> bool:
    """Whether a label becomes a box: for training, or in a copy after repairs that are certain."""
    if label.box is None or label.crowd or label.repeats or label.class_id is None:
        return False
    allowed = ("", "sticks_out", "range", "negative")
    if not label.refused:
        return label.fault in allowed
    return repaired and label.fault in (*allowed, "pixels", "twice") and _has_area(clip(label.box))


def _find_repeats(scan: Scan, entry: Entry) -> None:
    seen: dict[object, Label] = {}
    for label in entry.labels:
        if label.box is None or not used(label, repaired=True):
            continue
        other = seen.setdefault((label.class_id, clip(label.box)), label)
        if other is not label:
            label.repeats = True
            words = f"repeats {other.place}: '{label.text[:60]}'; remove one"
            fault = label.fault
            _note(scan, entry, label, "duplicate", words)
            label.fault = fault


def _take_outline(
    scan: Scan, entry: Entry, label: Label, scale: tuple[float, float] | None
) -> None:
    """Take the outline of a COCO annotation if it is that of its box."""
    if label.crowd:
        if not label.refused:
            _note(scan, entry, label, "crowd", "is a crowd region, kept apart")
        return
    if label.segmentation is None or scale is None or not label.sound or label.box is None:
        return
    fault = label.fault
    try:
        parts: list[Points] = [part / scale for part in parts_of(label.segmentation)]
    except (ValueError, TypeError, OverflowError):
        _note(scan, entry, label, "outline_points", "its segmentation is not lists of points")
    else:
        # A point that is not a number makes the hull, and this, not a number.
        if parts and overlap(hull_of(parts), label.box) >= _SAME_EXTENT:
            label.parts = parts
        elif parts:
            words = "its segmentation lies elsewhere than its box, which is used; correct one"
            _note(scan, entry, label, "outline", words)
    label.fault = fault


def turned(points: Points, orientation: int) -> Points:
    """Points (k, 2) in fractions of the stored image, as fractions of the upright one."""
    x, y = points[:, 0], points[:, 1]
    moves = {5: (y, x), 6: (1 - y, x), 7: (1 - y, 1 - x), 8: (y, 1 - x)}
    return np.stack(moves.get(orientation, (x, y)), axis=1)


def _settle_percent(scan: Scan) -> None:
    """Mark pixels that might as well be percent: nothing says which, so they are not converted."""
    found = [(entry, label) for entry, label in scan.labels() if label.fault == "pixels"]
    sides = [side for entry, _ in found for side in entry.size or ()]
    largest = max((abs(v) for _, label in found for v in label.values or ()), default=0.0)
    if not found or largest > 100 or max(sides, default=0) <= _BEYOND_PERCENT:
        return
    for _, label in found:
        label.box = None
    files = {(label.file, label.line) for _, label in found}
    for index, problem in enumerate(scan.problems):
        if problem.check == "pixels" and (problem.file, problem.line) in files:
            words = f"{problem.message}: percent or pixels?"
            scan.problems[index] = replace(problem, message=words, box=None, doubtful=True, fix="")
