"""Draw the figures of docs/concepts.md and docs/index.md.

    python docs/drawings.py            # writes docs/images/*.svg

The files are reproducible: a test compares them with the committed ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

IMAGES = Path(__file__).with_name("images")

A, B = "#cfe0f5", "#fbdcb8"  # the two groups of an E-ELAN
A_DARK, B_DARK = "#3b6ea8", "#b86b16"
PLAIN, GATHER = "#eceff2", "#dcebd5"
INK, FAINT = "#24292f", "#57606a"
COMPUTER, ROBOT = "#eaf2fb", "#ecf5e8"

Point = tuple[float, float]


class Drawing:
    """An SVG image; coordinates are in pixels, from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        # The white background keeps the drawing legible on dark pages.
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="Helvetica, Arial, DejaVu Sans, sans-serif">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0.8L8 4L0 7.2z" fill="{INK}"/></marker>'
            "</defs>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def text(
        self, x: float, y: float, words: str, *, size: int = 13, ink: str = INK,
        anchor: str = "middle", bold: bool = False,
    ) -> None:  # fmt: skip
        """Add text that is vertically centred at ``y``."""
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size}" fill="{ink}" '
            f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, words: str = "", *,
        height: float = 28, fills: Sequence[str] = (PLAIN,), size: int = 13,
    ) -> None:  # fmt: skip
        """Add a box with text; (x, y) is the middle of its upper edge, ``fills`` its colours."""
        left, part = x - width / 2, width / len(fills)
        for index, fill in enumerate(fills):
            self._parts.append(
                f'<rect x="{left + index * part:g}" y="{y:g}" width="{part:g}" '
                f'height="{height:g}" fill="{fill}"/>'
            )
        self._parts.append(
            f'<rect x="{left:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'fill="none" stroke="{INK}" rx="1"/>'
        )
        self.text(x, y + height / 2, words, size=size)

    def zone(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """Add a coloured area; (x, y) is its upper left corner."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" '
            'rx="8"/>'
        )

    def line(self, *points: Point, ink: str = INK, tip: bool = True, dashed: bool = False) -> None:
        """Add a line through points, with an arrow at its end if ``tip``."""
        path = " ".join(f"{'ML'[i > 0]}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        extra = ' marker-end="url(#tip)"' if tip else ""
        extra += ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{ink}" stroke-width="1.3"{extra}/>'
        )

    def plus(self, x: float, y: float) -> None:
        """Add a plus sign in a circle, centred at (x, y)."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="13" fill="#fff" stroke="{INK}"/>')
        self.line((x - 7, y), (x + 7, y), tip=False)
        self.line((x, y - 7), (x, y + 7), tip=False)

    def svg(self) -> str:
        """Return the content of the file."""
        return "\n".join([*self._parts, "</svg>", ""])


def _block(
    d: Drawing, left: float, top: float, names: Sequence[str], *,
    cell: float, fills: Sequence[str], conv: str, link: str,
) -> tuple[float, float]:  # fmt: skip
    """Draw an ELAN without its last convolution: P, Q, the chain below Q, and the concatenation.

    ``names`` are the concatenated maps, the last of the chain first, Q and P at the end; each is
    drawn ``cell`` pixels wide. Returns x of the middle and y of the lower edge of the
    concatenation.
    """
    step, bar = 50.0, top + 50 * (len(names) - 1) + 14
    middle = [left + cell * (i + 0.5) for i in range(len(names))]
    chain = names[:-2][::-1]
    width = 62 if len(fills) == 1 else 92
    d.box(middle[0], top, width, f"Q {conv}", fills=fills)
    d.box(middle[-1], top, width, f"P {conv}", fills=fills)
    d.line((middle[-1], top + 28), (middle[-1], bar))
    for i, name in enumerate(chain):
        y = top + step * (i + 1)
        d.line((middle[0], y - step + 28), (middle[0], y))
        d.box(middle[0], y, width, f"{name} {link}", fills=fills, size=12)
    for i, x in enumerate(middle[1:-1], start=1):
        y = top + step * (len(chain) - i) + 14
        d.line((middle[0] + width / 2, y), (x, y), (x, bar))
    d.line((middle[0], bar - 36), (middle[0], bar))
    for x, name in zip(middle, names, strict=True):
        d.box(x, bar, cell, "" if len(fills) > 1 else name, fills=fills, size=12)
    return left + cell * len(names) / 2, bar + 28


def eelan() -> str:
    """Draw both forms of E-ELAN side by side."""
    d = Drawing(960, 580, "E-ELAN: two ELANs summed, and the same as group convolutions")
    names = ("t6", "t4", "t2", "Q", "P")
    top = 124.0
    d.line((480, 20), (480, 560), ink="#d0d7de", tip=False)

    # left: two ELANs on one input, summed
    d.text(240, 26, "in the model: two ELANs on one input, summed", size=15, bold=True)
    d.box(240, 50, 60, "X")
    ends = []
    for left, fill in ((22.0, A), (258.0, B)):
        for x in (left + 20, left + 180):
            d.line((240, 78), (240, 98), (x, 98), (x, top))
        middle, low = _block(d, left, top, names, cell=40, fills=(fill,), conv="1×1", link="3×3 ×2")
        name, ink = ("ELAN a", A_DARK) if fill == A else ("ELAN b", B_DARK)
        d.text(middle + 12, 408, name, ink=ink, anchor="start")
        d.line((middle, low), (middle, 456))
        d.box(middle, 456, 100, "closing 1×1", fills=(fill,))
        ends.append(middle)
    for x, side in zip(ends, (-13, 13), strict=True):
        d.line((x, 484), (x, 530), (240 + side, 530))
    d.plus(240, 530)
    d.text(240, 560, "sum", ink=FAINT)

    # right: one block with two groups
    d.text(720, 26, "in the paper: expand, shuffle, merge cardinality", size=15, bold=True)
    d.box(720, 50, 60, "X")
    left, cell = 570.0, 64.0
    for x in (left + cell / 2, left + 4.5 * cell):
        d.line((720, 78), (720, 98), (x, 98), (x, top))
    middle, low = _block(
        d, left, top, names, cell=cell, fills=(A, B), conv="1×1", link="3×3 ×2, g=2"
    )
    _shuffle(d, left, low, cell / 2, names)
    d.line((middle - 80, 440), (middle - 80, 456))
    d.line((middle + 80, 440), (middle + 80, 456))
    d.box(middle, 456, 5 * cell, "closing 1×1, g=2", fills=(A, B))
    for sign in (-1, 1):
        d.line((middle + 80 * sign, 484), (middle + 80 * sign, 530), (middle + 13 * sign, 530))
    d.plus(middle, 530)
    for y, words in (
        (130, "expand"),
        (146, "to 2c"),
        (214, "two"),
        (230, "groups"),
        (392, "shuffle"),
    ):
        d.text(496, y, words, ink=FAINT, anchor="start", size=12)
    d.text(496, 522, "merge", ink=FAINT, anchor="start", size=12)
    d.text(496, 538, "cardinality", ink=FAINT, anchor="start", size=12)
    return d.svg()


def _shuffle(d: Drawing, left: float, top: float, cell: float, names: Sequence[str]) -> None:
    """Draw the shuffle: lines from halves in the order a b a b ... to the order a a ... b b ..."""
    for group, (fill, ink) in enumerate(((A, A_DARK), (B, B_DARK))):
        for i, name in enumerate(names):
            source = left + cell * (2 * i + group + 0.5)
            target = left + cell * (group * len(names) + i + 0.5)
            d.text(source, top - 14, name, size=12)
            d.line((source, top), (target, 412), ink=ink, tip=False)
            d.box(target, 412, cell, name, fills=(fill,), size=12)


def scaling() -> str:
    """Draw two blocks of different depth: a longer chain makes the concatenation wider."""
    d = Drawing(860, 440, "Compound scaling: depth 1.5 gathers 5 maps instead of 4")
    for left, names, title, note in (
        (70.0, ("t4", "t2", "Q", "P"), "yolov7: chain of 4", "4 × 64 = 256"),
        (480.0, ("t6", "t4", "t2", "Q", "P"), "depth 1.5: chain of 6", "5 × 64 = 320"),
    ):
        cell, top = 52.0, 62.0
        middle, low = _block(d, left, top, names, cell=cell, fills=(A,), conv="1×1", link="3×3 ×2")
        d.text(middle, 26, title, size=15, bold=True)
        d.text(middle + cell * len(names) / 2 + 10, low - 14, note, anchor="start", size=12)
        d.line((middle, low), (middle, 356))
        d.box(middle, 356, cell * len(names), f"transition: {note[-3:]} channels", fills=(GATHER,))
    d.text(430, 414, "inner widths stay, transitions grow by 5/4: the compound rule", ink=FAINT)
    return d.svg()


def rows() -> str:
    """Draw how rows become a torch module and an ONNX graph, whose outputs are compared."""
    d = Drawing(900, 250, "Rows are read by the module's builder and by the graph's writer")
    d.box(90, 104, 130, "rows", height=42, fills=(GATHER,), size=15)
    d.line((155, 118), (190, 118), (190, 54), (220, 54))
    d.line((155, 132), (190, 132), (190, 196), (420, 196))
    d.text(305, 184, "written node by node", size=12, ink=FAINT)
    upper = ((295, "torch module"), (495, "checkpoint"))
    lower = ((495, "ONNX graph"), (695, "file, in its engine"))
    for y, fill, boxes in ((33, A, upper), (175, B, lower)):
        for x, words in boxes:
            d.box(x, y, 150, words, height=42, fills=(fill,))
    d.line((370, 54), (420, 54))
    d.text(395, 42, "train", size=12, ink=FAINT)
    d.line((570, 196), (620, 196))
    d.line((495, 75), (495, 175))
    d.text(503, 125, "fold", size=12, ink=FAINT, anchor="start")
    d.line((570, 54), (695, 54), (695, 100))
    d.text(632, 42, "unfolded", size=12, ink=FAINT)
    d.line((695, 175), (695, 146))
    d.box(695, 100, 150, "the same numbers?", height=46, fills=("#ffffff",))
    d.line((770, 123), (806, 123))
    d.text(812, 115, "artifact", anchor="start")
    d.text(812, 132, "or nothing", anchor="start")
    return d.svg()


def flow() -> str:
    """Draw the way from labelled images to detections: files, steps, and where they run.

    It is narrow and has large letters, because phones scale it to the width of their screen.
    """
    d = Drawing(480, 870, "From labelled images to detections on a robot")
    d.zone(8, 8, 464, 538, COMPUTER)
    d.text(20, 27, "On your computer", size=15, anchor="start", bold=True)
    d.zone(8, 624, 464, 238, ROBOT)
    d.text(464, 643, "On the robot, without PyTorch", size=15, anchor="end", bold=True)
    d.zone(26, 250, 438, 288, "#ffffff")
    d.text(456, 268, "y7edge export", anchor="end", bold=True)
    middle = 138.0
    rows = (
        # y of the box, words, is it a file?, notes beside it
        (46, "images and labels", True, ("y7edge data check", "YOLO, COCO or Pascal VOC")),
        (114, "training", False, ("y7edge train", "needs PyTorch")),
        (182, "checkpoint", True, ("best.safetensors", "rows and weights")),
        (280, "fold", False, ("only plain convolutions", "are left")),
        (346, "graph", False, ("ONNX, written", "node by node")),
        (412, "build", False, ("by the packages", "of the target")),
        (478, "proof", False, ("the same outputs?", "needs PyTorch and the engine")),
        (566, "artifact + manifest", True, ("mine.onnx", "one file, or a few: copy them")),
        (664, "runtime session", False, ()),
    )
    for (y, words, is_file, notes), following in zip(rows, [*rows[1:], None], strict=True):
        d.box(middle, y, 200, words, height=42, fills=(B if is_file else PLAIN,), size=16)
        for words, below in zip(notes, (11, 30), strict=bool(notes)):
            d.text(
                252, y + below, words, size=14, anchor="start", ink=INK if below == 11 else FAINT
            )
        if following:
            d.line((middle, y + 42), (middle, following[0]))
    # The proof compares with the checkpoint as it was trained.
    d.line((38, 203), (18, 203), (18, 499), (38, 499), dashed=True)
    d.text(146, 556, "if so", size=14, ink=FAINT, anchor="start")

    d.box(362, 664, 196, "camera, video, files", height=42, fills=(B,), size=16)
    for x in (middle, 362.0):
        d.line((x, 706), (x, 734))
    d.box(249, 734, 422, "Detector: letterbox, network, decode, NMS", height=42, size=16)
    d.line((249, 776), (249, 804))
    d.box(249, 804, 422, "Detections: boxes, classes, capture time", height=42, fills=(B,), size=16)
    return d.svg()


DRAWINGS: dict[str, Callable[[], str]] = {
    "flow": flow,
    "rows": rows,
    "eelan": eelan,
    "scaling": scaling,
}


def main() -> int:
    """Write all drawings."""
    IMAGES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (IMAGES / f"{name}.svg").write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
