"""Names and category ids of the 80 COCO classes, in the order of the published models' outputs.

COCO labelled only 80 of its 91 planned classes, so the ids have gaps and go up to 90. The parser of
COCO files does not use this table: it uses the ids in each file.
"""

from __future__ import annotations

COCO_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)

COCO_IDS = (
    *range(1, 12),
    *range(13, 26),
    *(27, 28),
    *range(31, 45),
    *range(46, 66),
    *(67, 70),
    *range(72, 83),
    *range(84, 91),
)
