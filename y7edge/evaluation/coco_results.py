"""Write COCO results: detections as the JSON list that COCO's tools and servers read.

Images and categories of a COCO data set keep the ids of its annotation file. In other data sets the
image id is the number in the file name (``17.jpg``) if all names are different numbers. Otherwise
images are numbered from 1, and ``image_ids.json`` lists the numbers. Category ids of other data
sets are class indices from 0. With ``coco_ids``, the ids of the 80 COCO classes (1 to 90 with gaps)
are used for any data set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from y7edge.data.formats.coco_names import COCO_IDS
from y7edge.data.sample import Sample
from y7edge.detect.detections import Detections
from y7edge.errors import ConfigError
from y7edge.evaluation.tables import Table
from y7edge.files import write_text


def write_submission(
    found: Table,
    samples: Sequence[Sample],
    path: Path,
    *,
    classes: int,
    coco_ids: bool = False,
    category_ids: Sequence[int | str | None] = (),
) -> list[Path]:
    """Write ``path``, and ``image_ids.json`` beside it if images are numbered; return the paths.

    ``found`` is ``Tables.found``; its image numbers are indices into ``samples``. Boxes are written
    as left, top, width, height in pixels with three decimals, scores with five. ``category_ids``
    are the ids of the classes in the data set's annotation file. Detections of classes with the id
    None are left out.

    Raises:
        ConfigError: ``coco_ids`` is set, but the data set does not have 80 classes.
    """
    categories: Sequence[int | str | None] = category_ids or range(classes)
    if coco_ids:
        require_coco(classes)
        categories = COCO_IDS
    numbers = image_ids(samples)
    ids: Sequence[int | str] = numbers or range(1, len(samples) + 1)
    results = [
        _result(ids[int(image)], category, box, score)
        for image, *box, score, class_id in found.tolist()
        if (category := categories[int(class_id)]) is not None
    ]
    contents: dict[Path, Any] = {path: results}
    if numbers is None:
        paths = [str(sample.path) for sample in samples]
        contents[path.with_name("image_ids.json")] = dict(zip(paths, ids, strict=True))
    for file, content in contents.items():
        write_text(file, json.dumps(content, ensure_ascii=False))
    return list(contents)


def coco_results(
    detections: Detections, image_id: int | str, category_ids: Sequence[int | str | None] = ()
) -> list[dict[str, Any]]:
    """Return the COCO results of one image: ``image_id``, ``category_id``, ``bbox``, ``score``.

    Args:
        detections: of the image.
        image_id: id of the image in the annotation file.
        category_ids: ids of the classes in the annotation file, ``COCO_IDS`` of
            ``y7edge.data.formats.coco_names`` for COCO's 80 classes; detections of classes with
            the id None are left out. Empty: the class ids from 0.

    Raises:
        ConfigError: a class has no id in ``category_ids``.
    """
    last = int(detections.class_id.max(initial=-1))
    categories: Sequence[int | str | None] = category_ids or range(last + 1)
    if last >= len(categories):
        raise ConfigError(
            f"the detections have class {last}, but category_ids has {len(categories)} ids: "
            "expected one for each class of the model"
        )
    rows = zip(
        detections.xywh.tolist(), detections.confidence.tolist(), detections.class_id, strict=True
    )
    return [
        _result(image_id, category, box, score)
        for box, score, class_id in rows
        if (category := categories[class_id]) is not None
    ]


def _result(
    image_id: int | str, category_id: int | str, box: Sequence[float], score: float
) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(side, 3) for side in box],
        "score": round(score, 5),
    }


def require_coco(classes: int) -> None:
    """Raise ConfigError if the number of classes is not COCO's 80."""
    if classes != len(COCO_IDS):
        raise ConfigError(
            f"COCO's category ids are for its {len(COCO_IDS)} classes, this data set has {classes}"
        )


def image_ids(samples: Sequence[Sample]) -> list[int] | list[int | str] | None:
    """Return the image ids of a COCO data set; of other data sets, the file names as numbers.

    Return None if a file name is not a number, or if two numbers are equal.
    """
    known = [sample.image_id for sample in samples if sample.image_id is not None]
    if len(known) == len(samples):
        return known
    stems = [sample.path.stem for sample in samples]
    if not all(stem.isascii() and stem.isdecimal() for stem in stems):
        return None
    numbers = [int(stem) for stem in stems]
    return numbers if len(set(numbers)) == len(numbers) else None
