"""Define yolov7-tiny and yolov7-tiny-silu: short ELANs, max-pool transitions, three levels."""

from __future__ import annotations

from y7edge.models.draft import Draft
from y7edge.models.spec import IMAGE, Row

ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
STRIDES = (8, 16, 32)


def tiny() -> tuple[Row, ...]:
    """Return the rows of yolov7-tiny in training form."""
    net = Draft()

    # backbone
    net.conv(32, 3, 2, source=IMAGE)
    net.conv(64, 3, 2)
    net.elan(32, 64, 2, tap=1)
    net.pool()
    p3 = net.elan(64, 128, 2, tap=1)
    net.pool()
    p4 = net.elan(128, 256, 2, tap=1)
    net.pool()
    p5 = net.elan(256, 512, 2, tap=1)

    # spatial pyramid pooling, largest window first
    bypass = net.conv(256, source=p5)
    spread = net.conv(256, source=p5)
    windows = [net.pool(kernel, source=spread) for kernel in (5, 9, 13)]
    net.add("concat", (*windows[::-1], spread))
    pooled = net.conv(256)
    net.add("concat", (pooled, bypass))
    n5 = net.conv(256)

    # top down
    net.lift(128, p4)
    n4 = net.elan(64, 128, 2, tap=1)
    net.lift(64, p3)
    out3 = net.elan(32, 64, 2, tap=1)

    # bottom up
    net.conv(128, 3, 2)
    net.add("concat", (len(net.rows) - 1, n4))
    out4 = net.elan(64, 128, 2, tap=1)
    net.conv(256, 3, 2)
    net.add("concat", (len(net.rows) - 1, n5))
    out5 = net.elan(128, 256, 2, tap=1)

    return net.head(
        [
            net.conv(128, 3, source=out3),
            net.conv(256, 3, source=out4),
            net.conv(512, 3, source=out5),
        ]
    )
