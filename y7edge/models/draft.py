"""Build the rows of a model one by one, for the modules ``tiny``, ``p5`` and ``p6``."""

from __future__ import annotations

from y7edge.models.spec import IMAGE, Block, Row, derived_channels


class Draft:
    """A list of rows under construction.

    Most methods append rows and return the index of the last one. ``source`` is the index of the
    row to read; None: the previous row.
    """

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
        """Append one row. For a block in ``DERIVED``, ``out`` may be None: it is then computed."""
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
        """Append a convolution, with BatchNorm and activation."""
        return self.add("conv", source, out, kernel=kernel, stride=stride)

    def pool(self, kernel: int = 2, source: int | None = None) -> int:
        """Append a max-pool: kernel 2 halves the map; kernels 5, 9 and 13 keep its size."""
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
        """Append an ELAN block.

        Two 1x1 convolutions read the same row. A chain of 3x3 convolutions follows the second one.
        The outputs of both and of some 3x3 convolutions are concatenated, and a final 1x1
        convolution follows.

        Args:
            width: channels of the first two 1x1 convolutions.
            out: channels of the final 1x1 convolution.
            depth: number of 3x3 convolutions.
            tap: every ``tap``-th 3x3 convolution is concatenated, counted from the last.
            chain: channels of the 3x3 convolutions; None: ``width``.
            source: the row that the first two 1x1 convolutions read; None: the previous row.
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
        """Append two branches that halve the map: max-pool -> 1x1, and 1x1 -> 3x3 with stride 2.

        The outputs of both are concatenated; the row ``lateral``, if given, is the last part.
        """
        source = len(self.rows) - 1
        self.pool()
        pooled = self.conv(width)
        self.conv(width, source=source)
        strided = self.conv(width, 3, 2)
        branches = (strided, pooled)
        return self.add("concat", branches if lateral is None else (*branches, lateral))

    def lift(self, width: int, lateral: int) -> int:
        """Append a top-down step to a map of twice the size.

        The last row is convolved (1x1) and upsampled, then concatenated with a 1x1 convolution of
        the row ``lateral``.
        """
        self.conv(width)
        upper = self.add("upsample")
        side = self.conv(width, source=lateral)
        return self.add("concat", (side, upper))

    def head(self, inputs: list[int]) -> tuple[Row, ...]:
        """Append the detection head and return all rows."""
        self.add("head", tuple(inputs), 0)
        return tuple(self.rows)
