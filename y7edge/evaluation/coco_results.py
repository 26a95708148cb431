"""COCO results: detections as the JSON list that COCO's own tools and servers take.

Images and categories of a COCO data set have the ids of its own file, so that the results fit it.
Elsewhere an image's id is the number in its file's name if all images have one and no two the same;
else they are numbered from 1, and a file beside it says which is which. Category ids then count
from 0; COCO's own, 1 to 90 with gaps, on request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from y7edge.data.formats.coco_names import COCO_IDS
from y7edge.data.sample import Sample
from y7edge.errors import ConfigError
from y7edge.evaluation.tables import Table
from y7edge.files import atomic_write


def write_submission(
    found: Table,
    samples: Sequence[Sample],
    path: Path,
    *,
    classes: int,
    coco_ids: bool = False,
    category_ids: Sequence[int | str | None] = (),
) -> list[Path]:
    """Write ``path`` and, if images had to be numbered, ``image_ids.json`` beside it.

    Boxes are left, top, width, height in pixels of the picture to three decimals, scores to five.

    Args:
        found: (n, 7): index into ``samples``, left, top, width, height, confidence, class.
        samples: the images.
        path: the JSON file.
        classes: count of classes.
        coco_ids: write the category ids of COCO's files.
        category_ids: those of the data set's own file, by class, None where it lacks one;
            empty for other data.

    Returns:
        The files.

    Raises:
        ConfigError: COCO's ids for a data set of other than 80 classes.
    """
    categories: Sequence[int | str | None] = category_ids or range(classes)
    if coco_ids:
        require_coco(classes)
        categories = COCO_IDS
    numbers = image_ids(samples)
    named = numbers is not None
    ids: Sequence[int | str] = numbers or range(1, len(samples) + 1)
    results = [
        {
            "image_id": ids[int(image)],
            "category_id": categories[int(class_id)],
            "bbox": [round(side, 3) for side in box],
            "score": round(score, 5),
        }
        for image, *box, score, class_id in found.tolist()
        if categories[int(class_id)] is not None
    ]
    paths = [_write(results, path)]
    if not named:
        mapping = {str(sample.path): number for sample, number in zip(samples, ids, strict=True)}
        paths.append(_write(mapping, path.with_name("image_ids.json")))
    return paths


def require_coco(classes: int) -> None:
    """Refuse COCO's category ids for other classes than its own.

    Raises:
        ConfigError: there are other than 80 classes.
    """
    if classes != len(COCO_IDS):
        raise ConfigError(
            f"COCO's category ids are for its {len(COCO_IDS)} classes, this data set has {classes}"
        )


def image_ids(samples: Sequence[Sample]) -> list[int] | list[int | str] | None:
    """The ids of a COCO file, else the numbers that files are named by; None if they are not."""
    known = [sample.image_id for sample in samples if sample.image_id is not None]
    if len(known) == len(samples):
        return known
    stems = [sample.path.stem for sample in samples]
    if not all(stem.isascii() and stem.isdecimal() for stem in stems):
        return None
    numbers = [int(stem) for stem in stems]
    return numbers if len(set(numbers)) == len(numbers) else None


def _write(content: Any, path: Path) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
