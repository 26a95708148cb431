"""Define yolov7 and yolov7x: three levels at 640 px, max-pool + convolution transitions.

yolov7x is yolov7 after compound scaling: chains of 6 instead of 4 convolutions, transitions 1.25
times as wide. There are two exceptions (see ``tests/models/test_scaling.py``). In its neck, chains
have full width and every second convolution is concatenated. The convolutions in front of its head
are plain instead of RepConv.
"""

from __future__ import annotations

from typing import Literal

from y7edge.models.draft import Draft
from y7edge.models.spec import IMAGE, Row

ANCHORS = (
    ((12.0, 16.0), (19.0, 36.0), (40.0, 28.0)),
    ((36.0, 75.0), (76.0, 55.0), (72.0, 146.0)),
    ((142.0, 110.0), (192.0, 243.0), (459.0, 401.0)),
)
STRIDES = (8, 16, 32)


def yolov7() -> tuple[Row, ...]:
    """Return the rows of yolov7 in training form."""
    return _p5(width=32, depth=4, narrow_neck=True, lead="repconv")


def yolov7x() -> tuple[Row, ...]:
    """Return the rows of yolov7x in training form."""
    return _p5(width=40, depth=6, narrow_neck=False, lead="conv")


def _p5(
    width: int,  # channels of the stem; those of the transitions are multiples of it
    depth: int,  # 3x3 convolutions in a chain
    *,
    narrow_neck: bool,  # neck: chains of half the width, all convolutions of a chain concatenated
    lead: Literal["conv", "repconv"],  # block in front of the head
) -> tuple[Row, ...]:
    net = Draft()

    def neck(inner: int, out: int) -> int:
        if narrow_neck:
            return net.elan(inner, out, depth, tap=1, chain=inner // 2)
        return net.elan(inner, out, depth, tap=2)

    # backbone
    net.conv(width, 3, source=IMAGE)
    net.conv(2 * width, 3, 2)
    net.conv(2 * width, 3)
    net.conv(4 * width, 3, 2)
    net.elan(64, 8 * width, depth, tap=2)
    net.mpconv(4 * width)
    p3 = net.elan(128, 16 * width, depth, tap=2)
    net.mpconv(8 * width)
    p4 = net.elan(256, 32 * width, depth, tap=2)
    net.mpconv(16 * width)
    net.elan(256, 32 * width, depth, tap=2)
    n5 = net.add("sppcspc", None, 16 * width)

    # top down
    net.lift(8 * width, p4)
    n4 = neck(256, 8 * width)
    net.lift(4 * width, p3)
    out3 = neck(128, 4 * width)

    # bottom up
    net.mpconv(4 * width, lateral=n4)
    out4 = neck(256, 8 * width)
    net.mpconv(8 * width, lateral=n5)
    out5 = neck(512, 16 * width)

    outs = ((out3, 8 * width), (out4, 16 * width), (out5, 32 * width))
    return net.head([net.add(lead, source, out, kernel=3) for source, out in outs])
