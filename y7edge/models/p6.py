"""Define yolov7-w6, -e6, -d6 and -e6e: four levels at 1280 px, auxiliary head.

E6 and D6 are W6 after compound scaling (chains of 6 and 8 instead of 4 convolutions, transitions
1.25 and 1.5 times as wide) with another transition block, ``downc``. E6E is E6 with extended ELANs
(E-ELAN): two ELANs read the same input, and their outputs are added. This equals the paper's
expand / shuffle / merge with group convolutions (``docs/concepts.md``).
"""

from __future__ import annotations

from typing import Literal

from y7edge.models.draft import Draft
from y7edge.models.spec import IMAGE, Row

ANCHORS = (
    ((19.0, 27.0), (44.0, 40.0), (38.0, 94.0)),
    ((96.0, 68.0), (86.0, 152.0), (180.0, 137.0)),
    ((140.0, 301.0), (303.0, 264.0), (238.0, 542.0)),
    ((436.0, 615.0), (739.0, 380.0), (925.0, 792.0)),
)
STRIDES = (8, 16, 32, 64)

CHAINS = (64, 128, 256, 384, 512)  # channels inside the ELANs of P2 to P6, in all four models


def w6() -> tuple[Row, ...]:
    """Return the rows of yolov7-w6 in training form."""
    return _p6(width=64, depth=4, down="conv", aux_width=80)


def e6() -> tuple[Row, ...]:
    """Return the rows of yolov7-e6 in training form."""
    return _p6(width=80, depth=6, down="downc", aux_width=80)


def d6() -> tuple[Row, ...]:
    """Return the rows of yolov7-d6 in training form."""
    return _p6(width=96, depth=8, down="downc", aux_width=96)


def e6e() -> tuple[Row, ...]:
    """Return the rows of yolov7-e6e in training form."""
    return _p6(width=80, depth=6, down="downc", aux_width=80, extended=True)


def _p6(
    *,
    width: int,  # channels of the stem; those of the transitions are multiples of it
    depth: int,  # 3x3 convolutions in a chain
    down: Literal["conv", "downc"],  # how maps are halved: 3x3 with stride 2, or two branches
    aux_width: int,  # the channels in front of the auxiliary head are multiples of it
    extended: bool = False,  # E-ELAN
) -> tuple[Row, ...]:
    net = Draft()

    def halve(out: int) -> int:
        return net.conv(out, 3, 2) if down == "conv" else net.add("downc", None, out)

    def block(inner: int, out: int, *, tap: int, chain: int) -> tuple[int, int]:
        """Append an ELAN or E-ELAN; return the rows that next block and auxiliary head read."""
        source = len(net.rows) - 1
        first = net.elan(inner, out, depth, tap=tap, chain=chain, source=source)
        if not extended:
            return first, first
        second = net.elan(inner, out, depth, tap=tap, chain=chain, source=source)
        # The paper's partial auxiliary head reads only one of the two ELANs.
        return net.add("sum", (second, first)), second

    neck = (2 * width, 4 * width, 6 * width, 8 * width)  # P3 to P6

    # backbone
    net.add("reorg", IMAGE)
    net.conv(width, 3)
    backbone = []
    for factor, inner in zip((2, 4, 8, 12, 16), CHAINS, strict=True):
        halve(factor * width)
        backbone.append(block(inner, factor * width, tap=2, chain=inner)[0])
    top = net.add("sppcspc", None, neck[3])

    # top down: P5, P4, P3
    fine, taps = [top], [top]
    for level in (2, 1, 0):
        net.lift(neck[level], backbone[level + 1])
        inner = CHAINS[level + 1]
        main, tapped = block(inner, neck[level], tap=1, chain=inner // 2)
        fine.append(main)
        taps.append(tapped)

    # bottom up: P4, P5, P6
    outs = [fine[-1]]
    for level in (1, 2, 3):
        strided = halve(neck[level])
        net.add("concat", (strided, fine[3 - level]))
        inner = CHAINS[level + 1]
        outs.append(block(inner, neck[level], tap=1, chain=inner // 2)[0])

    heads = []
    for unit, sources in ((width, outs), (aux_width, taps[::-1])):
        for factor, source in zip((4, 8, 12, 16), sources, strict=True):
            heads.append(net.conv(factor * unit, 3, source=source))
    return net.head(heads)
