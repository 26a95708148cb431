"""Read images from a file, a folder, a glob pattern or a video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from y7edge.data.headers import too_large
from y7edge.data.sample import is_image
from y7edge.errors import DataError, SourceError, Y7EdgeError
from y7edge.files import is_folder, is_utf8, open_regular, reason

# Suffixes of video formats that OpenCV reads with FFmpeg.
_VIDEO_SUFFIXES = {
    *(".264", ".265", ".3g2", ".3gp", ".amv", ".apng", ".asf", ".av1", ".avi", ".divx", ".dv"),
    *(".f4v", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v"),
    *(".m4v", ".mj2", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
    *(".wtv", ".y4m"),
}
_HIGHEST_RATE = 1000  # frames/s; MPEG-TS files without a frame rate report their clock of 90,000


@dataclass(frozen=True, eq=False)
class InputImage:
    """One image of a file.

    Attributes:
        source: The file.
        image: Pixels (H, W, 3) uint8 BGR.
        frame: Index in a video, from 0; None for a single image.
        rate: Frames per second of the video; None if unknown.
    """

    source: Path
    image: NDArray[np.uint8]
    frame: int | None = None
    rate: float | None = None


def find_inputs(source: str) -> tuple[list[Path], list[Path]]:
    """List the images and videos of ``source``, sorted by name, and the entries that are skipped.

    A folder or a pattern selects files by suffix, and skips the others. A path of one file is
    returned whatever its suffix is.

    Raises:
        SourceError: There is no image or video, or the folder cannot be read.
    """
    path = Path(source)
    expected = "an image, a video, a folder or a pattern such as 'images/*.jpg'"
    try:
        if is_folder(path):
            expected, entries = "a folder of images or videos", list(path.iterdir())
        elif os.path.lexists(path):
            return [path], []
        else:
            root = Path(path.anchor)
            entries = list(root.glob(str(path.relative_to(root))))
    except OSError as error:
        raise SourceError(f"{source}: cannot be read: {reason(error)}") from error
    except ValueError as error:  # an invalid pattern, such as a**
        raise SourceError(f"{source}: expected {expected}: {error}") from error
    folders = set(filter(is_folder, entries))
    found = {entry for entry in entries if is_image(entry) or _is_video(entry)} - folders
    others = sorted(set(entries) - found - (set() if is_folder(path) else folders))
    if not found:
        what = f"none among {len(others)} entries" if others else "nothing"
        raise SourceError(f"{source}: expected {expected}, found {what}")
    return sorted(found), others


def read_input(path: Path, levels: tuple[int, int] | None = None) -> Iterator[InputImage]:
    """Yield the image of a file, or the frames of a video or an animated GIF.

    ``levels``: (lowest, highest) value of the 16-bit images that the model was trained on. This
    range is scaled to 8 bits. None: the whole range of 16 bits.

    Raises:
        SourceError: The file cannot be decoded. If a video has fewer frames than its header states,
            the error is raised after the last frame.
    """
    from y7edge.data.images import read_image

    if not _is_video(path):
        try:
            image = read_image(path, levels)
        except DataError as error:
            if is_image(path):
                raise SourceError(str(error)) from error
        else:
            yield InputImage(path, image)
            return
    yield from _read_video(path)


def utf8_path(path: Path, error: type[Y7EdgeError]) -> str:
    """Return an absolute path for OpenCV's video classes, which crash if a path is not UTF-8.

    Raises an exception of the class ``error`` if the path is not UTF-8.
    """
    # FFmpeg would interpret the text before a colon in a relative path as a protocol.
    absolute = str(path.absolute())
    if not is_utf8(absolute):
        raise error(f"{absolute!a}: OpenCV cannot open a video of this name: rename it")
    return absolute


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in _VIDEO_SUFFIXES and not path.name.startswith(".")


def _read_video(path: Path) -> Iterator[InputImage]:
    import cv2

    try:
        open_regular(path).close()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {reason(error)}") from error
    video = cv2.VideoCapture(utf8_path(path, SourceError))
    try:
        sides = (video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if words := too_large(*map(int, sides)):
            raise SourceError(f"{path}: {words}")
        expected, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
        stated = rate if 0 < rate <= _HIGHEST_RATE else None
        is_still = path.suffix.lower() == ".gif" and expected == 1
        count, seconds = 0, 0.0
        while (read := video.read())[0]:
            seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            image = np.asarray(read[1], dtype=np.uint8)
            yield InputImage(path, image, None if is_still else count, stated)
            count += 1
    finally:
        video.release()
    if not count:
        kind = "a video" if _is_video(path) else "an image or a video"
        raise SourceError(f"{path}: expected {kind} that OpenCV decodes, found no frame")
    # Some containers state only a duration, from which OpenCV estimates the number of frames.
    # Therefore a video is truncated only if the time of its last frame is too early as well. This
    # time is 0 if the container has no times.
    is_early = seconds * rate < expected - 2.5 and (seconds > 0 or count == 1)
    if is_early and count < expected - 1:
        raise SourceError(f"{path}: truncated: read {count} frames, expected {expected:.0f}")
