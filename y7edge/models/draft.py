"""Writing rows: the small vocabulary that the family files describe their networks in.

Every method appends rows and returns the index of the last one, which is what later rows read.
Without ``source`` a row reads the row before it.
"""

from __future__ import annotations

from y7edge.models.spec import IMAGE, Block, Row


class Draft:
    """A network being written down, row by row."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._stages = 0

    def add(
        self,
        block: Block,
        inputs: tuple[int, ...] | int | None = None,
        out: int | None = None,
        *,
        kernel: int = 1,
        stride: int = 1,
        role: str = "",
        stage: int = 0,
        identity: bool = False,
    ) -> int:
        """Append one row; ``out`` may be left out where it follows from the inputs."""
        index = len(self.rows)
        sources = (
            (index - 1,) if inputs is None else (inputs,) if isinstance(inputs, int) else inputs
        )
        channels = (
            derived_channels(block, [self.channels(i) for i in sources]) if out is None else out
        )
        self.rows.append(
            Row(index, sources, block, channels, kernel, stride, role, stage, identity)
        )
        return index

    def channels(self, index: int) -> int:
        """Channels of a row's output; 3 for the picture."""
        return 3 if index == IMAGE else self.rows[index].out

    def conv(self, out: int, kernel: int = 1, stride: int = 1, source: int | None = None) -> int:
        """Convolution -> BatchNorm -> activation."""
        return self.add("conv", source, out, kernel=kernel, stride=stride)

    def pool(self, kernel: int = 2, source: int | None = None) -> int:
        """Max-pool: 2x2 halves the map, 5, 9 and 13 keep it."""
        return self.add("maxpool", source, kernel=kernel, stride=2 if kernel == 2 else 1)

    def elan(
        self,
        width: int,
        out: int,
        depth: int,
        *,
        tap: int,
        chain: int | None = None,
        source: int | None = None,
    ) -> int:
        """Efficient layer aggregation: two 1x1, a chain of 3x3, a concatenation, a closing 1x1.

        ``width`` is that of the two 1x1, ``chain`` that of the ``depth`` 3x3 (default the same).
        Every ``tap``-th of the chain, counted from its end, is concatenated, newest first.
        """
        self._stages += 1
        stage = self._stages
        source = len(self.rows) - 1 if source is None else source
        first = self.add("conv", source, width, role="split", stage=stage)
        second = self.add("conv", source, width, role="split", stage=stage)
        links = [
            self.add("conv", None, chain or width, kernel=3, role="chain", stage=stage)
            for _ in range(depth)
        ]
        taps = tuple(links[::-1][::tap])
        self.add("concat", (*taps, second, first), role="gather", stage=stage)
        return self.add("conv", None, out, role="merge", stage=stage)

    def mpconv(self, width: int, lateral: int | None = None) -> int:
        """Halve the last map by two branches: max-pool -> 1x1, and 1x1 -> 3x3 stride 2."""
        source = len(self.rows) - 1
        self.pool()
        pooled = self.conv(width)
        self.conv(width, source=source)
        strided = self.conv(width, 3, 2)
        return self.add("concat", (strided, pooled, *(() if lateral is None else (lateral,))))

    def lift(self, width: int, lateral: int) -> int:
        """Top-down step: 1x1, x 2, concatenated behind a 1x1 of the same stride's ``lateral``."""
        self.conv(width)
        upper = self.add("upsample")
        side = self.conv(width, source=lateral)
        return self.add("concat", (side, upper))

    def head(self, inputs: list[int]) -> tuple[Row, ...]:
        """The detection head; ends the draft."""
        self.add("head", tuple(inputs), 0)
        return tuple(self.rows)


def derived_channels(block: Block, inputs: list[int]) -> int:
    """Output channels of the blocks that have no width of their own."""
    if block == "concat":
        return sum(inputs)
    return 4 * inputs[0] if block == "reorg" else inputs[0]
