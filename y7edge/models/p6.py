"""yolov7-w6, -e6, -d6 and -e6e: four levels at 1280 px, space-to-depth stem, auxiliary head.

E6 and D6 are W6 by compound scaling (chains 4 -> 6 and 8, transitions x 1.25 and x 1.5) with
another transition block, ``downc``. E6E is E6 with extended ELANs: two in parallel on the same
input, their outputs summed, which equals expand / shuffle / merge cardinality with group
convolutions (``docs/concepts.md``).
"""

from __future__ import annotations

from collections.abc import Sequence

from y7edge.models.draft import Draft
from y7edge.models.spec import IMAGE, Row

ANCHORS = (
    ((19.0, 27.0), (44.0, 40.0), (38.0, 94.0)),
    ((96.0, 68.0), (86.0, 152.0), (180.0, 137.0)),
    ((140.0, 301.0), (303.0, 264.0), (238.0, 542.0)),
    ((436.0, 615.0), (739.0, 380.0), (925.0, 792.0)),
)
STRIDES = (8, 16, 32, 64)

CHAINS = (64, 128, 256, 384, 512)  # widths inside the blocks, P2 to P6: the same in all four


def w6() -> tuple[Row, ...]:
    """Rows of yolov7-w6 in training form."""
    return _p6(
        stem=64, stages=(128, 256, 512, 768, 1024), neck=(128, 256, 384, 512),
        depth=4, down="conv", lead=(256, 512, 768, 1024), aux=(320, 640, 960, 1280),
    )  # fmt: skip


def e6() -> tuple[Row, ...]:
    """Rows of yolov7-e6 in training form."""
    return _p6(
        stem=80, stages=(160, 320, 640, 960, 1280), neck=(160, 320, 480, 640),
        depth=6, down="downc", lead=(320, 640, 960, 1280), aux=(320, 640, 960, 1280),
    )  # fmt: skip


def d6() -> tuple[Row, ...]:
    """Rows of yolov7-d6 in training form."""
    return _p6(
        stem=96, stages=(192, 384, 768, 1152, 1536), neck=(192, 384, 576, 768),
        depth=8, down="downc", lead=(384, 768, 1152, 1536), aux=(384, 768, 1152, 1536),
    )  # fmt: skip


def e6e() -> tuple[Row, ...]:
    """Rows of yolov7-e6e in training form."""
    return _p6(
        stem=80, stages=(160, 320, 640, 960, 1280), neck=(160, 320, 480, 640),
        depth=6, down="downc", lead=(320, 640, 960, 1280), aux=(320, 640, 960, 1280), extended=True,
    )  # fmt: skip


def _p6(
    *,
    stem: int,
    stages: Sequence[int],  # outputs of the backbone's blocks, P2 to P6
    neck: Sequence[int],  # outputs of the neck's blocks, P3 to P6
    depth: int,  # 3x3 convolutions in a chain
    down: str,  # transition that halves the map: "conv" 3x3 stride 2, or "downc"
    lead: Sequence[int],
    aux: Sequence[int],
    extended: bool = False,
) -> tuple[Row, ...]:
    net = Draft()

    def halve(width: int) -> int:
        return net.conv(width, 3, 2) if down == "conv" else net.add("downc", None, width)

    def block(width: int, out: int, *, tap: int, chain: int) -> tuple[int, int]:
        """An ELAN, or two in parallel summed: (what the network goes on with, what aux taps)."""
        source = len(net.rows) - 1
        first = net.elan(width, out, depth, tap=tap, chain=chain, source=source)
        if not extended:
            return first, first
        second = net.elan(width, out, depth, tap=tap, chain=chain, source=source)
        # The auxiliary head hangs on one group only: the paper's partial auxiliary head.
        return net.add("sum", (second, first)), second

    # backbone
    net.add("reorg", IMAGE)
    net.conv(stem, 3)
    backbone = []
    for width, chain in zip(stages, CHAINS, strict=True):
        halve(width)
        backbone.append(block(chain, width, tap=2, chain=chain)[0])
    top = net.add("sppcspc", None, neck[3])

    # top down: P5, P4, P3
    fine, taps = [top], [top]
    for level in (2, 1, 0):
        net.lift(neck[level], backbone[level + 1])
        width = CHAINS[level + 1]
        main, tapped = block(width, neck[level], tap=1, chain=width // 2)
        fine.append(main)
        taps.append(tapped)

    # bottom up: P4, P5, P6
    outs = [fine[-1]]
    for level in (1, 2, 3):
        strided = halve(neck[level])
        net.add("concat", (strided, fine[3 - level]))
        width = CHAINS[level + 1]
        outs.append(block(width, neck[level], tap=1, chain=width // 2)[0])

    heads = [net.conv(width, 3, source=row) for width, row in zip(lead, outs, strict=True)]
    heads += [net.conv(width, 3, source=row) for width, row in zip(aux, taps[::-1], strict=True)]
    return net.head(heads)
