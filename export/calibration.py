"""Choose the images whose activations give the ranges of a quantised graph.

The images come from the split "train", never from "val" or "test": the mAP of the artifact is
measured on these. A folder of images without labels can be used too.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from y7edge.artifact import bounds
from y7edge.artifact.manifest import InputInfo
from y7edge.data import dataset
from y7edge.data.formats.records import Scan, split_named
from y7edge.data.images import decode, reading
from y7edge.detect.preprocess import Preprocessor
from y7edge.errors import ConfigError, DataError
from y7edge.evaluation.evaluate import same_classes
from y7edge.export.graph.quantize_weights import output_means
from y7edge.export.quantization import Quantizer
from y7edge.models.checkpoint import Checkpoint
from y7edge.models.registry import folded, kept_rows
from y7edge.models.shapes import convolutions
from y7edge.text import printable

COUNT = 256
"""Default number of images."""

FEW = 32
"""A calibration with fewer images gives a warning."""


_FAR = 3.0  # standard deviations; one channel does not decide
# Differences of activations, in standard deviations. Measured with two yolov7-tiny models, 32
# images: 0.06 to 0.14 for images of the data set, 0.31 to 0.58 for another data set, swapped
# colours, or images of 0.3 times the brightness; 4 images of the data set: 0.08 to 0.29.
_USUAL, _UNCERTAIN = 0.18, 0.3


@dataclass(frozen=True)
class Calibration:
    """Images for a calibration.

    Attributes:
        images: The files.
        names: Their printable names, relative to the data set.
        digest: SHA-256 over the names, and the SHA-256 of the contents, of the files.
        source: Where they come from, for reports.
        warnings: What may be wrong with them, one line each.
    """

    images: tuple[Path, ...]
    names: tuple[str, ...]
    digest: str
    source: str
    warnings: tuple[str, ...] = ()

    def first(self, count: int) -> Calibration:
        """Return the calibration with the first ``count`` images, or all if it has fewer.

        Raises:
            ConfigError: ``count`` is not positive.
            DataError: an image cannot be read.
        """
        if count < 1:
            raise ConfigError(f"the number of calibration images is {count}, expected 1 or more")
        if count >= len(self.images):
            return self
        images, names = self.images[:count], self.names[:count]
        digest = _digest(names, [_content_digest(path) for path in images])
        return replace(self, images=images, names=names, digest=digest)

    def inputs(self, image: InputInfo) -> Iterator[NDArray[Any]]:
        """Yield the images as the Detector feeds them to the network, one array at a time.

        Args:
            image: the network's input: size, layout, dtype and colour order.

        Returns:
            Arrays (B, 3, H, W), or (B, H, W, 3) in layout NHWC, in the input's dtype. If the batch
            size is fixed, the first images fill the last batch.

        Raises:
            DataError: an image cannot be read, or the files have changed.
        """
        preprocess, size, count = Preprocessor(image), image.images, len(self.images)
        batch = np.empty((size, *preprocess.tensor.shape[1:]), preprocess.tensor.dtype)
        digests = []
        for index in range(-(-count // size) * size):
            path = self.images[index % count]
            with reading(path) as (content, _):
                digests.append(hashlib.sha256(content).digest())
                preprocess(decode(content, path, image.levels), out=batch[index % size])
            if (index + 1) % size == 0:
                yield batch.copy()
        if _digest(self.names, digests[:count]) != self.digest:
            raise DataError(f"{self.source}: images were changed during the calibration: repeat it")


def choose_images(
    data: Path | str,
    names: Sequence[str],
    *,
    count: int = COUNT,
    seed: int = 0,
    without: Iterable[Path] = (),
) -> Calibration:
    """Choose images of the split "train" such that they contain all classes.

    Up to half of the images are chosen for their classes, rare classes first. The others are a
    random sample, so that the frequencies of objects and backgrounds remain similar. Equal files
    are used once. The choice depends only on the files and ``seed``.

    Args:
        data: a data set, as for ``y7edge train``; or a folder or list file of images without
            labels.
        names: the class names of the model.
        count: number of images; fewer are used if the data set has fewer.
        seed: seed of the random choice.
        without: images of the evaluation. Neither they nor copies of them are used.

    Raises:
        ConfigError: ``count`` is not 1 to 10,000.
        DataError: there are no images, an image cannot be read, or the labels have other classes.
    """
    if not 1 <= count <= bounds.MAX_CALIBRATION:
        raise ConfigError(
            f"the number of calibration images is {count}, expected 1 to {bounds.MAX_CALIBRATION}"
        )
    warnings: list[str] = []
    scan = dataset.open_scan(data, ["train"])
    if any(problem.check == "undescribed" for problem in scan.problems):
        paths, classes = _unlabelled(scan), []
    else:
        try:
            loaded = same_classes(names, dataset.load(data, ["train"]), warnings.append)
        except DataError as error:
            raise DataError(f"{error}; to calibrate, give a folder of images instead") from error
        samples = loaded.split("train")
        paths = [sample.path for sample in samples]
        classes = [frozenset(sample.class_id.tolist()) for sample in samples]
        warnings += _missing(names, classes, scan.source)
    order = _order(len(paths), classes, count, seed)
    candidates = [(paths[i], _name(paths[i], scan.root)) for i in order]
    found, repeated, evaluated = _taken(candidates, count, without)
    if evaluated:
        warnings.append(
            f"warning: {scan.source} contains images of the evaluation: {evaluated} are not used"
        )
    if not found:
        raise DataError(
            f"{scan.source}: all images are images of the evaluation: calibrate with others "
            "(--calib DATA)"
        )
    if repeated:
        warnings.append(
            f"warning: {scan.source} contains images several times: {repeated} copies are not used"
        )
    if len(found) < min(FEW, count):
        warnings.append(
            f"warning: few calibration images in {scan.source}: found {len(found)}, expected {FEW} "
            "or more: the ranges of activations may be too small"
        )
    images, shown, digests = zip(*found, strict=True)
    return Calibration(
        images, shown, _digest(shown, digests), printable(str(data)), tuple(warnings)
    )


def unfamiliar(checkpoint: Checkpoint, quantizer: Quantizer) -> tuple[str, ...]:
    """Warn if activations on the calibration images differ from those in the training.

    A BatchNorm records mean and variance of its inputs in the training. Its output therefore had
    the mean ``bias`` and the standard deviation ``weight``. The means of the folded convolutions on
    the calibration images are compared with these, in standard deviations: root mean square over
    the channels of a layer, then median over the layers.

    Args:
        checkpoint: the checkpoint before folding. Nothing is compared if it has no BatchNorm layers
            or was not trained.
        quantizer: the calibrated graph of the folded checkpoint.

    Returns:
        Warnings, one line each; empty if the activations are similar.
    """
    outputs, found = output_means(quantizer.model, quantizer.means), []
    spec, arrays = folded(checkpoint.spec), checkpoint.arrays
    rows = (*kept_rows(checkpoint.spec), checkpoint.spec.head.index)
    for info in convolutions(spec):
        inner = info.name.removeprefix(f"rows.{info.row}").removesuffix("conv")
        norm, mean = f"rows.{rows[info.row]}{inner}bn", outputs.get(f"{info.name}.weight")
        if mean is None or not np.any(arrays.get(f"{norm}.running_mean", 0)):  # 0: not trained
            continue
        spread = np.maximum(np.abs(arrays[f"{norm}.weight"]), 1e-6)
        apart = np.minimum(np.abs(mean - arrays[f"{norm}.bias"]) / spread, _FAR)
        found.append(float(np.sqrt(np.mean(apart**2))))
    # The mean of few images is uncertain.
    usual = _USUAL + _UNCERTAIN / math.sqrt(max(1, quantizer.images))
    if not found or np.median(found) <= usual:
        return ()
    return (
        f"warning: activations on the calibration images differ from those of the training by "
        f"{np.median(found):.2f} standard deviations, usual are less than {usual:.2f}: calibrate "
        "with images like those that the model was trained on",
    )


def _unlabelled(scan: Scan) -> list[Path]:
    """Return the images of a folder or list file without labels."""
    paths = [entry.path for entry in scan.in_split("train")]
    split = split_named(scan.source.stem)
    if split in ("val", "test") or not paths:
        raise DataError(
            f"{scan.source}: expected images for training, found only images of the split "
            f"{split or 'val or test'}: calibrate with other images than those of the evaluation"
        )
    return paths


def _missing(
    names: Sequence[str], classes: Sequence[frozenset[int]], source: Path
) -> Iterator[str]:
    """Yield a warning if no image contains an object of some class."""
    missing = sorted(set(range(len(names))) - frozenset().union(*classes))
    if missing:
        some = printable(reprlib.repr([names[index] for index in missing]))
        yield f"warning: {source} has no training images with {len(missing)} of the classes: {some}"


def _order(total: int, classes: Sequence[frozenset[int]], count: int, seed: int) -> list[int]:
    """Return the indices of all images; those that are to be used come first.

    Args:
        total: number of images.
        classes: the classes in each image; empty if there are no labels.
        count: number of images that will be used.
        seed: seed of the random choice.
    """
    shuffled = np.random.default_rng(seed).permutation(total).tolist()
    holders: dict[int, list[int]] = {}
    for index in shuffled if classes else ():
        for class_id in classes[index]:
            holders.setdefault(class_id, []).append(index)
    each = max(1, count // (2 * max(1, len(holders))))
    first: dict[int, None] = {}
    for _, own in sorted(holders.items(), key=lambda item: (len(item[1]), item[0])):
        lacking = each - sum(index in first for index in own)
        fresh = (index for index in own if index not in first)
        first |= dict.fromkeys(itertools.islice(fresh, max(0, lacking)))
    return list(dict.fromkeys([*first, *shuffled]))


def _taken(
    candidates: Iterable[tuple[Path, str]], count: int, without: Iterable[Path]
) -> tuple[list[tuple[Path, str, bytes]], int, int]:
    """Return path, name and digest of the first ``count`` different files.

    Files with the content of one of ``without`` are passed over. Also return how many copies were
    passed over, and how many of these files.
    """
    excluded = {_content_digest(path) for path in without}
    found: dict[bytes, tuple[Path, str, bytes]] = {}
    repeated = evaluated = 0
    for path, name in candidates:
        digest = _content_digest(path)
        if digest in excluded:
            evaluated += 1
            continue
        repeated += digest in found
        found.setdefault(digest, (path, name, digest))
        if len(found) == count:
            break
    return list(found.values()), repeated, evaluated


def _content_digest(path: Path) -> bytes:
    """Return the SHA-256 of an image file."""
    with reading(path) as (content, _):
        return hashlib.sha256(content).digest()


def _digest(names: Sequence[str], digests: Sequence[bytes]) -> str:
    """Return the SHA-256 over the names of files and the SHA-256 of their contents."""
    state = hashlib.sha256()
    for name, content in zip(names, digests, strict=True):
        # Names contain no newline, and digests are hexadecimal, so that lines are unambiguous.
        state.update(f"{content.hex()} {name}\n".encode())
    return state.hexdigest()


def _name(path: Path, root: Path) -> str:
    """Return the printable name of a file: relative to the data set, else without folders."""
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return printable(relative.as_posix())
