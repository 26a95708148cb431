"""yolov7 and yolov7x: three levels at 640 px, max-pool + convolution transitions.

X is yolov7 by compound scaling (chains 4 -> 6, transitions x 1.25) with two departures from the
rule: its neck chains have full width and every second link is gathered, and its lead convolutions
are plain where yolov7's are planned re-parameterised ones (``tests/models/test_scaling.py``).
"""

from __future__ import annotations

from y7edge.models.draft import Draft
from y7edge.models.spec import IMAGE, Row

ANCHORS = (
    ((12.0, 16.0), (19.0, 36.0), (40.0, 28.0)),
    ((36.0, 75.0), (76.0, 55.0), (72.0, 146.0)),
    ((142.0, 110.0), (192.0, 243.0), (459.0, 401.0)),
)
STRIDES = (8, 16, 32)


def yolov7() -> tuple[Row, ...]:
    """Rows of yolov7 in training form."""
    net = Draft()

    # backbone
    net.conv(32, 3, source=IMAGE)
    net.conv(64, 3, 2)
    net.conv(64, 3)
    net.conv(128, 3, 2)
    net.elan(64, 256, 4, tap=2)
    net.mpconv(128)
    p3 = net.elan(128, 512, 4, tap=2)
    net.mpconv(256)
    p4 = net.elan(256, 1024, 4, tap=2)
    net.mpconv(512)
    net.elan(256, 1024, 4, tap=2)
    n5 = net.add("sppcspc", None, 512)

    # top down
    net.lift(256, p4)
    n4 = net.elan(256, 256, 4, tap=1, chain=128)
    net.lift(128, p3)
    out3 = net.elan(128, 128, 4, tap=1, chain=64)

    # bottom up
    net.mpconv(128, lateral=n4)
    out4 = net.elan(256, 256, 4, tap=1, chain=128)
    net.mpconv(256, lateral=n5)
    out5 = net.elan(512, 512, 4, tap=1, chain=256)

    return net.head(
        [
            net.add("repconv", out3, 256, kernel=3),
            net.add("repconv", out4, 512, kernel=3),
            net.add("repconv", out5, 1024, kernel=3),
        ]
    )


def yolov7x() -> tuple[Row, ...]:
    """Rows of yolov7x in training form."""
    net = Draft()

    # backbone
    net.conv(40, 3, source=IMAGE)
    net.conv(80, 3, 2)
    net.conv(80, 3)
    net.conv(160, 3, 2)
    net.elan(64, 320, 6, tap=2)
    net.mpconv(160)
    p3 = net.elan(128, 640, 6, tap=2)
    net.mpconv(320)
    p4 = net.elan(256, 1280, 6, tap=2)
    net.mpconv(640)
    net.elan(256, 1280, 6, tap=2)
    n5 = net.add("sppcspc", None, 640)

    # top down
    net.lift(320, p4)
    n4 = net.elan(256, 320, 6, tap=2)
    net.lift(160, p3)
    out3 = net.elan(128, 160, 6, tap=2)

    # bottom up
    net.mpconv(160, lateral=n4)
    out4 = net.elan(256, 320, 6, tap=2)
    net.mpconv(320, lateral=n5)
    out5 = net.elan(512, 640, 6, tap=2)

    return net.head(
        [
            net.conv(320, 3, source=out3),
            net.conv(640, 3, source=out4),
            net.conv(1280, 3, source=out5),
        ]
    )
