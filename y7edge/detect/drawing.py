"""Draw boxes and labels, with one colour per class."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

from y7edge.detect.detections import Detection, Detections
from y7edge.detect.preprocess import Color, check_color, check_frame, to_bgr
from y7edge.errors import DataError
from y7edge.frames import Frame

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GOLDEN = 0.618033988749895  # multiples of the golden ratio give evenly spread hues

Bgr = tuple[int, int, int]


def draw(
    frame: NDArray[np.uint8] | Frame,
    detections: Detections,
    *,
    confidence: bool = True,
    color: Color = "bgr",
) -> NDArray[np.uint8]:
    """Draw a box and a label for each detection on a copy of an image; the best one is on top.

    Args:
        frame: (H, W, 3) uint8, or (H, W) grey, or (H, W, 4) with alpha; or a ``Frame`` of any
            format.
        detections: the detections of this image.
        confidence: write the confidence after the class name.
        color: order of the channels of the result, and of an array.

    Returns:
        The copy, (H, W, 3) uint8.

    Raises:
        DataError: the frame is not an image, or its size differs from the detections' image.
        ConfigError: ``color`` is not "bgr" or "rgb".
    """
    check_color(color)
    given = frame if isinstance(frame, Frame) else Frame(check_frame(frame), color)
    image = to_bgr(given)
    height, width = image.shape[:2]
    if (width, height) != tuple(detections.image_wh):
        raise DataError(
            f"the frame is {width}x{height}, expected {detections.image_wh[0]}x"
            f"{detections.image_wh[1]}, the size of the detections' image: draw on that image"
        )
    canvas = image.copy() if np.may_share_memory(image, given.image) else image
    thickness = max(1, round((height + width) / 600))
    for index in np.argsort(detections.confidence, kind="stable"):
        detection = detections[int(index)]
        colour = class_colour(detection.class_id)
        corners = [round(value) for value in detection.xyxy]
        cv2.rectangle(canvas, corners[:2], corners[2:], colour, thickness)
        _label(canvas, detection, colour, thickness, confidence)
    if color == "rgb":
        return np.asarray(cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB), np.uint8)
    return canvas


def class_colour(class_id: int) -> Bgr:
    """Return the colour (blue, green, red) of a class; those of consecutive ids differ clearly."""
    hue = class_id * _GOLDEN % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0 if class_id % 2 == 0 else 0.75)
    return round(blue * 255), round(green * 255), round(red * 255)


def _label(
    canvas: NDArray[np.uint8], detection: Detection, colour: Bgr, thickness: int, confidence: bool
) -> None:
    """Write the label above the box, or inside it at the image's edge."""
    # OpenCV's fonts have only ASCII characters: write the class id if the name has others.
    name = detection.class_name
    if not (name.isascii() and name.isprintable()):
        name = f"#{detection.class_id}"
    tracked = detection.tracker_id is not None and detection.tracker_id >= 0
    tracker = f" #{detection.tracker_id}" if tracked else ""
    text = name + tracker + (f" {detection.confidence:.2f}" if confidence else "")
    scale = 0.4 + 0.15 * (thickness - 1)
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    strip = height + baseline + 2
    left = max(0, min(round(detection.left), canvas.shape[1] - width - 2))
    top = round(detection.top) - strip
    top = top if top >= 0 else max(0, round(detection.top))
    cv2.rectangle(canvas, (left, top), (left + width + 2, top + strip), colour, cv2.FILLED)
    blue, green, red = colour
    # Black text on light colours, white text on dark ones, by luma (ITU-R BT.601).
    ink = (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 128 else (255, 255, 255)
    cv2.putText(canvas, text, (left + 1, top + height + 1), _FONT, scale, ink, 1, cv2.LINE_AA)
