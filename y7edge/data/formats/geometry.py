"""Compute and check the normalized box of each label, for all formats."""

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

ROUNDING = 1e-3  # tolerance for rounded labels, as a fraction of the image
NO_AREA = 1e-6  # a side up to this fraction of the image counts as zero
_SURELY_PIXELS = 4.0  # larger numbers are pixels, not normalized coordinates
_LARGEST = 1e9  # pixels
# Side in pixels. In larger images, numbers up to 100 may be percent instead of pixels.
_BEYOND_PERCENT = 128
_SAME_EXTENT = 0.5  # least IoU of a box and the bounding box of its outline
_SLACK = 0.02  # fraction of a side by which imprecise boxes may stick out of the image


def measure(scan: Scan) -> None:
    """Read the size and orientation of every image from its header."""
    for entry in scan.entries:
        scan.watch(entry.path)
        try:
            entry.frame = frame = read_frame(entry.path)
        except DataError as error:
            words = str(error).removeprefix(f"{entry.path}: ")
            needed = scan.layout != "yolo" and stated_size(entry) is None
            if needed:
                words += "; its annotation does not state a size either"
            scan.problem("header", words, entry.path,
                         image=entry.path, effect="refused" if needed else "changed")  # fmt: skip
            continue
        if words := too_large(*frame.stored, frame.pixels):
            scan.problem("pixel_count", words, entry.path, image=entry.path)
        if entry.tiny:
            words = f"is {frame.size[0]}x{frame.size[1]} pixels, too small to be used; remove it"
            scan.problem("tiny_image", words, entry.path, image=entry.path)


def place(scan: Scan) -> None:
    """Compute the box of every label, and record problems."""
    stored = _stored_frames(scan)
    for entry in scan.entries:
        entry.in_stored_frame = id(entry) in stored
        if entry.in_stored_frame and entry.labels:
            words = "its boxes were drawn without the EXIF rotation; they are rotated"
            scan.problem("rotation", words, entry.path, image=entry.path)
        scale = _scale(scan, entry)
        for label in entry.labels:
            _check(scan, entry, label, scale)
        _find_repeats(scan, entry)
    _mark_percent(scan)


def stated_size(entry: Entry) -> tuple[float, float] | None:
    """Return the width and height that the annotation states; None if they are not positive."""
    return entry.stated if entry.stated and min(entry.stated) > 0 else None


def _scale(scan: Scan, entry: Entry) -> tuple[float, float] | None:
    """Return the width and height by which pixels are divided; None if unknown, or for YOLO.

    This is the size of the image. If the annotation states another size with the same aspect ratio,
    the image was scaled after it was labelled, and the stated size is returned. Other differences
    are recorded as problems.
    """
    frame, stated, file = entry.frame, stated_size(entry), entry.label_file or entry.path
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
        words = f"{found}; the size of the image is used"
        scan.problem("size", words, file,
                     image=entry.path, effect="advice", severity="warning")  # fmt: skip
        return size
    if frame.turned and stated in (frame.size, frame.stored):
        return size  # some tools state the size before the rotation
    # Scaled sides are rounded to whole pixels.
    slack = max(stated[0], size[0]) + max(stated[1], size[1])
    if abs(stated[0] * size[1] - stated[1] * size[0]) <= slack:
        words = f"{found}: the aspect ratio is the same, so labels are scaled"
        scan.problem("rescaled", words, file, image=entry.path)
        return stated
    exchanged = stated == size[::-1]
    words = f"{found}: {'width and height are exchanged' if exchanged else 'correct it'}"
    if all(_inside(label, size) for label in entry.labels):
        scan.problem("size", words, file, image=entry.path)
    else:
        words += "; its boxes do not fit the image, so they refer to another size"
        scan.problem("size", words, file, image=entry.path, effect="refused")
        entry.lost = "has boxes that refer to another image size"
    return size


def _inside(label: Label, size: tuple[int, int], slack: float = 0.0) -> bool:
    """Return whether a label's box in pixels is inside an image; True if the label is not a box.

    The box may stick out by one pixel plus the fraction ``slack`` of the image's side.
    """
    box = _pixel_corners(label)
    if box is None:
        return True
    wide, high = (side * slack + 1 for side in size)
    return min(box[0] + wide, box[1] + high) >= 0 and (
        box[2] <= size[0] + wide and box[3] <= size[1] + high
    )


def _pixel_corners(label: Label) -> Corners | None:
    """Return the corners in pixels of a COCO or VOC label; None if its numbers are not a box."""
    values = label.values
    if values is None or len(values) != 4 or not all(map(math.isfinite, values)):
        return None
    a, b, c, d = values
    return (a, b, a + c, b + d) if label.form == "sides" else (a, b, c, d)


def _stored_frames(scan: Scan) -> set[int]:
    """Return ``id(entry)`` of the entries whose boxes refer to the image before the EXIF rotation.

    In YOLO data sets, `_whole_pixels` decides for each image. In other formats, the images whose
    boxes fit only before or only after the rotation decide for all rotated images of the data set.
    If there are no such images, or if they contradict each other, all boxes refer to the upright
    image. The size in the annotation does not decide, because tools write either size.
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
        if entry.labels and stated_size(entry) in (None, frame.size, frame.stored):
            upright, stored = (
                all(_inside(label, size, _SLACK) for label in entry.labels)
                for size in (frame.size, frame.stored)
            )
            found += [(entry, stored)] if upright != stored else []
    votes = Counter(stored for _, stored in found)
    if votes[True] and votes[False]:
        for entry, stored in found:
            fit, others = ("before", "after") if stored else ("after", "before")
            words = f"its boxes fit the image only {fit} the EXIF rotation, but boxes of other "
            words += f"images fit only {others} it; correct these boxes or those"
            scan.problem("rotation", words, entry.path,
                         image=entry.path, effect="refused", doubtful=True)  # fmt: skip
    # Leave out images whose annotation states neither the upright nor the stored size.
    stored_only = votes[True] and not votes[False]
    return {id(e) for e, f in turned if stored_only and stated_size(e) in (None, f.stored, f.size)}


def _whole_pixels(entry: Entry, size: tuple[int, int]) -> bool:
    """Return whether there are two or more boxes, all with corners at whole pixels of ``size``.

    A box drawn with a mouse has corners at whole pixels of the image size at which it was drawn,
    and rarely of another size.
    """
    found = 0
    for label in entry.labels:
        if label.form != "box" or label.values is None or len(label.values) != 4:
            continue
        found += 1
        for value, side in zip(_extent(label, label.values), (*size, *size), strict=True):
            # Numbers printed with six digits are accurate to 1e-6 of the side.
            distance = abs(value * side - round(value * side)) if math.isfinite(value) else 1.0
            if distance > 2e-6 * side + 1e-3:
                return False
    return found >= 2


def _extent(label: Label, values: Sequence[float]) -> Corners:
    """Return the corners of a box with centre and size, or the bounding box of a polygon."""
    if label.form == "polygon":
        xs, ys = values[0::2], values[1::2]
        return min(xs), min(ys), max(xs), max(ys)
    cx, cy, w, h = values
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def _check(scan: Scan, entry: Entry, label: Label, scale: tuple[float, float] | None) -> None:
    """Compute the box of a label, repaired if necessary, and record its first problem."""
    if _unreadable(scan, entry, label):
        return
    if label.form in ("corners", "sides"):
        _check_pixels(scan, entry, label, scale)
    else:
        _check_fractions(scan, entry, label, label.values or ())
    if label.box is not None and not label.fault and not label.crowd:
        _check_place(scan, entry, label, label.box)
    _take_outline(scan, entry, label, scale)
    if entry.in_stored_frame and entry.frame is not None and label.box is not None:
        turn = entry.frame.orientation
        label.parts = [turned(part, turn) for part in label.parts]
        corners = turned(np.array(label.box).reshape(2, 2), turn)
        label.box = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def _note(scan: Scan, entry: Entry, label: Label, check: str, words: str, **other: object) -> None:
    """Record a problem of a label, and update ``fault`` and ``refused`` of the label."""
    words = f"{label.item}: {words}" if label.item else words
    other |= {"image": entry.path, "box": label.box}
    scan.problem(check, words, label.file, label.line, **other)
    # Commas and class names were replaced by the parser, so the label can be used.
    if check != "separators" and not (check == "class_number" and label.named):
        label.fault = check
    label.refused |= scan.problems[-1].effect == "refused"


def _unreadable(scan: Scan, entry: Entry, label: Label) -> bool:
    """Record problems of the class and numbers of a label; return True if it has no valid box."""
    values, text, reason = label.values, f"'{label.text[:60]}'", label.fault
    wanted = {"corners": "xmin, ymin, xmax, ymax as numbers"}.get(label.form, "numbers")
    if label.form == "sides":
        wanted, text = "bbox as four finite numbers", reprlib.repr(label.raw.get("bbox"))
    label.fault = ""
    if label.class_id is None or label.named or not scan.has_class(label.class_id):
        _note_class(scan, entry, label)
        if label.fault:
            return True  # without a valid class, the columns may be in another order
    if label.repaired == RESPELLED:
        words = f"{text} has commas or semicolons; use decimal points, and spaces as separators"
        _note(scan, entry, label, "separators", words)
    if values is None:
        hint = "; use decimal points, and spaces as separators" if "," in text else ""
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
                words += f"; this seems to be a box with extra columns ({reason}): for keypoints "
                words += "write kpt_shape: [K, D] in the data.yaml, else remove the columns"
            elif len(values) == 5:
                words += "; remove the sixth column, probably the confidence of a prediction"
            elif len(values) > 5:
                words += "; keypoints need kpt_shape: [K, D] in the data.yaml"
        _note(scan, entry, label, "columns", words)
    else:
        return False
    return True


def _note_class(scan: Scan, entry: Entry, label: Label) -> None:
    """Record a problem of a class: it does not exist, is not a number, or was written as a name."""
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
        hint = "is the class in the last column?" if last else "correct or remove the line"
        hint = "use decimal points, and spaces as separators" if "," in label.text else hint
        _note(scan, entry, label, "class_number", f"{words}; {hint}")
    else:
        way = "the line or the names of the data.yaml"
        if label.class_id < 0:
            way = "or remove the line; classes start at 0"
        words = f"expected a class from 0 to {count - 1}, found {label.class_id}; correct {way}"
        _note(scan, entry, label, "class_range", words)


def _check_fractions(scan: Scan, entry: Entry, label: Label, values: Sequence[float]) -> None:
    """Set the box of a YOLO label, whose numbers must be fractions of the image's size.

    Record a problem if they are in pixels, or were divided by the image's size twice.
    """
    size, largest = entry.size, max(map(abs, values))
    box = _extent(label, values)
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


def _check_pixels(
    scan: Scan, entry: Entry, label: Label, scale: tuple[float, float] | None
) -> None:
    """Set the box of a COCO or VOC label: divide it by ``scale``, a width and height in pixels."""
    box = _pixel_corners(label)
    if scale is None or box is None:
        return
    wide, high = scale
    label.box = (box[0] / wide, box[1] / high, box[2] / wide, box[3] / high)
    if entry.size:  # may differ from `scale` if the image was scaled
        _find_twice(scan, entry, label, np.multiply(label.box, entry.size * 2).tolist())


def _find_twice(scan: Scan, entry: Entry, label: Label, pixels: Sequence[float]) -> None:
    """Record a problem if a box is inside the top left pixel of the image.

    Such a box was probably divided by the image size twice. ``pixels`` are its corners x1, y1, x2,
    y2 in pixels. If they are whole numbers, nothing is recorded, because the box may be a real
    object in the corner of the image.
    """
    size = entry.size
    if size is None or min(size) < LEAST_SIDE or label.crowd:
        return
    # Parts outside the image are clipped later.
    (x1, x2), (y1, y2) = (sorted(max(v, 0.0) for v in pixels[axis::2]) for axis in (0, 1))
    box = (x1, y1, x2, y2)
    whole = all(abs(value - round(value)) < 1e-2 for value in box)
    if not whole and max(box) <= 1 + ROUNDING and min(x2 - x1, y2 - y1) > ROUNDING:
        label.box = box
        words = f"'{label.text[:60]}' is inside the top left pixel of the image; if it was divided "
        words += "by the image size twice, multiply it by width and height"
        _note(scan, entry, label, "twice", words)


def _check_place(scan: Scan, entry: Entry, label: Label, box: Corners) -> None:
    """Record a problem if a box has no area, has exchanged corners, or is not inside the image."""
    text = label.text[:60]
    if box[2] < box[0] or box[3] < box[1]:
        x, y = sorted((box[0], box[2])), sorted((box[1], box[3]))
        label.box = box = (x[0], y[0], x[1], y[1])
        if _has_area(box):
            words = f"width or height is negative: '{text}'; the corners are put in order"
            _note(scan, entry, label, "negative", words)
    if not _has_area(box):
        words = f"the box has no area: '{text}'; remove it"
        _note(scan, entry, label, "no_area", words)
    elif not _has_area(clip(box)):
        words = f"the box is outside the image: '{text}'; remove or correct it"
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
        words = f"sticks out by {beyond:.1%} of the image's side: '{text}'; clip it"
        _note(scan, entry, label, "sticks_out", words)


def clip(box: Corners) -> Corners:
    """Clip a normalized box to the image."""
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box)
    return x1, y1, x2, y2


def _has_area(box: Corners) -> bool:
    return box[2] - box[0] > NO_AREA and box[3] - box[1] > NO_AREA


def _divided(box: Corners, size: tuple[int, int] | None) -> Corners | None:
    """Divide a box in pixels by the image size; return None if it does not fit into the image."""
    if size is None:
        return None
    x1, y1, x2, y2 = (value / side for value, side in zip(box, size * 2, strict=True))
    fits = min(x1, y1) > -_SLACK and max(x2, y2) < 1 + _SLACK and _has_area((x1, y1, x2, y2))
    return (x1, y1, x2, y2) if fits else None


def used(label: Label, *, repaired: bool = False) -> bool:
    """Return whether training (with ``repaired``: the cleaned copy) uses a label."""
    if label.box is None or label.crowd or label.repeats or label.class_id is None:
        return False
    allowed = ("", "sticks_out", "range", "negative")
    if not label.refused:
        return label.fault in allowed
    return repaired and label.fault in (*allowed, "pixels", "twice") and _has_area(clip(label.box))


def _find_repeats(scan: Scan, entry: Entry) -> None:
    """Record a problem for each label with the class and box of an earlier label of the image."""
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
    """Set the outline of a COCO annotation if it matches the box; record problems and crowds."""
    if label.crowd:
        if not label.refused:
            _note(scan, entry, label, "crowd", "is a crowd region, not used for training")
        return
    if label.segmentation is None or scale is None or not label.sound or label.box is None:
        return
    fault = label.fault
    try:
        parts: list[Points] = [part / scale for part in parts_of(label.segmentation)]
    except (ValueError, TypeError, OverflowError):
        words = "expected a segmentation of lists of points; it is not used"
        _note(scan, entry, label, "outline_points", words)
    else:
        # The comparison is False if a point is NaN.
        if parts and overlap(hull_of(parts), label.box) >= _SAME_EXTENT:
            label.parts = parts
        elif parts:
            words = "its segmentation does not match its box; only the box is used: correct one"
            _note(scan, entry, label, "outline", words)
    label.fault = fault


def turned(points: Points, orientation: int) -> Points:
    """Convert normalized points (k, 2) of the stored image to the upright one (orientation 5-8)."""
    x, y = points[:, 0], points[:, 1]
    moves = {5: (y, x), 6: (1 - y, x), 7: (1 - y, 1 - x), 8: (y, 1 - x)}
    return np.stack(moves.get(orientation, (x, y)), axis=1)


def _mark_percent(scan: Scan) -> None:
    """Mark labels in pixels as doubtful if they may be percent; `--fix` does not convert them."""
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
