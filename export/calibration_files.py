"""Write calibration images in the form that a vendor's quantiser reads.

All forms have the same images with the same letterbox, as the Detector feeds them to the network.
``calibration.json`` beside them names the images, and has the SHA-256 of their contents and names.
The same images give the same bytes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from y7edge.artifact.manifest import InputInfo
from y7edge.errors import ConfigError, DataError
from y7edge.files import is_utf8, reason, temporary_folder, writing
from y7edge.text import is_printable

if TYPE_CHECKING:
    from y7edge.export.calibration import Calibration

RECORD = "calibration.json"

Progress = Callable[[int, int], None]
"""Called with the number of images that are written, and of all images."""

_Arrays = Iterator[NDArray[Any]]  # one image each, with batch dimension


@dataclass(frozen=True)
class Form:
    """One form of calibration files.

    Attributes:
        description: What the files are, and which toolchains read them.
        image: Returns the input whose values are written, from the network's input.
        write: Writes the files into a folder, and returns the name of the file or folder that the
            vendor's tool is given. Its arguments are the images, their number, the folder, and the
            input that ``image`` returned.
    """

    description: str
    image: Callable[[InputInfo], InputInfo]
    write: Callable[[_Arrays, int, Path, InputInfo], str]


def write(
    calibration: Calibration,
    image: InputInfo,
    folder: Path,
    form: str,
    *,
    count: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write calibration images into a new folder, either all of them or none.

    Args:
        calibration: the images.
        image: the network's input: size, letterbox, colour order; layout and scale of floats.
        folder: the folder, which must not exist or must be empty.
        form: a name from ``FORMS``.
        count: write the first images only; None: all.
        progress: called after each image.

    Returns:
        The file or folder to give to the vendor's tool.

    Raises:
        ConfigError: there is no such form, the folder is not empty, or ``count`` is not positive.
        DataError: an image cannot be read, or the files have changed.
        OutputError: a file cannot be written.
    """
    require_form(form)
    if count is not None:
        calibration = calibration.first(count)
    require_new(folder)
    values, total = replace(FORMS[form].image(image), batch=1), len(calibration.images)

    def images() -> _Arrays:
        for index, array in enumerate(calibration.inputs(values)):
            yield array
            if progress is not None:
                progress(index + 1, total)

    with writing("calibration files", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as temporary:
            made = temporary / "made"
            made.mkdir()
            name = FORMS[form].write(images(), total, made, values)
            (made / RECORD).write_text(_record(calibration, values, form), "utf-8")
            made.replace(folder)
    return folder / name


def require_form(form: str) -> None:
    """Raise ConfigError if there is no such form."""
    if form not in FORMS:
        raise ConfigError(f"no form {form!r} of calibration files; choose from {', '.join(FORMS)}")


def require_new(folder: Path) -> None:
    """Raise ConfigError unless the folder does not exist, or is empty."""
    try:
        if not is_utf8(folder) or not is_printable(str(folder)):
            raise ConfigError(f"{str(folder)!r} is not a usable name for a folder")
        empty = not folder.is_symlink() and not any(folder.iterdir())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be a new folder: {reason(error)}") from error
    if not empty:
        raise ConfigError(f"{folder} is not empty: choose another folder, or remove it")


def _record(calibration: Calibration, image: InputInfo, form: str) -> str:
    """Return the content of ``calibration.json``."""
    content = {
        "form": form,
        "digest": calibration.digest,
        "images": calibration.names,
        "input": {
            "height": image.height,
            "width": image.width,
            "layout": image.layout,
            "dtype": image.dtype,
            "color": image.color,
            "scale": image.scale,
            "pad": image.letterbox.pad,
        },
    }
    return json.dumps(content, indent=1) + "\n"


# --- the values ----------------------------------------------------------------------------------


def _pixels(image: InputInfo) -> InputInfo:
    return replace(image, dtype="uint8", layout="NHWC", scale=1.0, zero_point=0)


def _bgr(image: InputInfo) -> InputInfo:
    """Return the input of images that OpenCV writes to files."""
    return replace(_pixels(image), color="bgr")


def _floats(image: InputInfo) -> InputInfo:
    if image.zero_point:
        raise ConfigError(
            f"the network's input is {image.dtype} with zero point {image.zero_point}, and files "
            "with floats are for inputs without one: use an artifact with input float32 or uint8"
        )
    return replace(image, dtype="float32")


def _planes(image: InputInfo) -> InputInfo:
    return replace(_floats(image), layout="NCHW")


# --- the files -----------------------------------------------------------------------------------


def _write_images(arrays: _Arrays, _count: int, folder: Path, _image: InputInfo) -> str:
    import cv2  # here, because help texts list the forms without OpenCV too

    (folder / "images").mkdir()
    for index, array in enumerate(arrays):
        done, content = cv2.imencode(".png", array[0])
        if not done:
            raise DataError(f"OpenCV cannot write calibration image {index} as PNG")
        (folder / "images" / f"{index:05}.png").write_bytes(content.tobytes())
    return "images"


def _write_png_list(arrays: _Arrays, count: int, folder: Path, image: InputInfo) -> str:
    _write_images(arrays, count, folder, image)
    return _list(folder, "dataset.txt", [f"images/{index:05}.png" for index in range(count)])


def _write_raw(arrays: _Arrays, count: int, folder: Path, _image: InputInfo) -> str:
    (folder / "raw").mkdir()
    for index, array in enumerate(arrays):
        (folder / "raw" / f"{index:05}.raw").write_bytes(array.astype("<f4", copy=False).tobytes())
    return _list(folder, "input_list.txt", [f"raw/{index:05}.raw" for index in range(count)])


def _list(folder: Path, name: str, lines: list[str]) -> str:
    (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    return name


def _write_arrays(arrays: _Arrays, _count: int, folder: Path, _image: InputInfo) -> str:
    (folder / "arrays").mkdir()
    for index, array in enumerate(arrays):
        np.save(folder / "arrays" / f"{index:05}.npy", array, allow_pickle=False)
    return "arrays"


def _write_stack(arrays: _Arrays, count: int, folder: Path, image: InputInfo) -> str:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *image.shape[1:])}
    # Not a memory map: on a full disk, writing to one kills the process.
    with (folder / "images.npy").open("wb") as stream:
        npy.write_array_header_1_0(stream, header)
        for array in arrays:
            stream.write(array.tobytes())
    return "images.npy"


def _write_npz(arrays: _Arrays, count: int, folder: Path, image: InputInfo) -> str:
    if not is_printable(image.name) or set(image.name) & set("/\\"):
        raise ConfigError(f"the network's input {image.name!r} cannot be the name of an array")
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, *image.shape[1:])}
    # The entry's date is 1980, and one image is in memory at a time, unlike in numpy.savez.
    name = zipfile.ZipInfo(f"{image.name}.npy")
    with (
        zipfile.ZipFile(folder / "images.npz", "w") as archive,
        archive.open(name, "w", force_zip64=True) as entry,
    ):
        npy.write_array_header_1_0(entry, header)
        for array in arrays:
            entry.write(array.astype("<f4", copy=False).tobytes())
    return "images.npz"


FORMS: Mapping[str, Form] = {
    "images": Form("folder of PNG: Kneron, TIDL, Renesas, Sophgo", _bgr, _write_images),
    "png-list": Form("PNG and dataset.txt: RKNN, ACUITY", _bgr, _write_png_list),
    "nhwc-uint8-npy": Form("one .npy (N, H, W, 3) uint8: Hailo", _pixels, _write_stack),
    "nchw-float-npy": Form("one .npy (1, 3, H, W) float32 per image", _planes, _write_arrays),
    "raw-float32": Form("raw floats and input_list.txt: Qualcomm", _floats, _write_raw),
    "npz": Form("one .npz, (N, ...) float32 by input name: ModelOpt, AIMET", _floats, _write_npz),
}
"""All forms, by name. PNG have the colours of the images; arrays have the network's colour order,
and floats have its scale."""
