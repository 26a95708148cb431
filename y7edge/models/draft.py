"""Append the rows of a network one by one; the model families are written with it.

Every method appends rows and returns the index of the last one. Without ``source`` a row reads the
row before it.
"""

from __future__ import annotations

from y7edge.models.spec import IMAGE, Block, Row, derived_channels


class Draft:
    """The rows of a network so far."""

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
    ) -> int:
        """Append one row; ``out`` is not needed for blocks whose width follows from the inputs."""
        index = len(self.rows)
        if inputs is None:
            inputs = index - 1
        sources = (inputs,) if isinstance(inputs, int) else inputs
        if out is None:
            widths = [3 if i == IMAGE else self.rows[i].out for i in sources]
            out = derived_channels(block, widths)
        self.rows.append(Row(index, sources, block, out, kernel, stride, role, stage))
        return index

    def conv(self, out: int, kernel: int = 1, stride: int = 1, source: int | None = None) -> int:
        """Append convolution -> BatchNorm -> activation."""
        return self.add("conv", source, out, kernel=kernel, stride=stride)

    def pool(self, kernel: int = 2, source: int | None = None) -> int:
        """Append a max-pool: kernel 2 halves the map, 5, 9 and 13 keep its size."""
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
        """Append an ELAN block: two 1x1, a chain of 3x3, a concatenation, a closing 1x1.

        The two 1x1 have ``width`` channels, the ``depth`` 3x3 have ``chain`` (default: ``width``).
        Every ``tap``-th 3x3 is concatenated, last first.
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
        """Halve the map by max-pool -> 1x1 and 1x1 -> 3x3 stride 2; concatenate both."""
        source = len(self.rows) - 1
        self.pool()
        pooled = self.conv(width)
        self.conv(width, source=source)
        strided = self.conv(width, 3, 2)
        branches = (strided, pooled)
        return self.add("concat", branches if lateral is None else (*branches, lateral))

    def lift(self, width: int, lateral: int) -> int:
        """Append a top-down step: 1x1 and upsample, concatenated after a 1x1 of ``lateral``."""
        self.conv(width)
        upper = self.add("upsample")
        side = self.conv(width, source=lateral)
        return self.add("concat", (side, upper))

    def head(self, inputs: list[int]) -> tuple[Row, ...]:
        """Append the detection head and return all rows."""
        self.add("head", tuple(inputs), 0)
        return tuple(self.rows)
