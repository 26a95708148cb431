"""Capture the messages about damaged files that libjpeg writes to standard error."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_JPEG = re.compile(r"Corrupt JPEG data|Premature end of JPEG|Invalid (JPEG|SOS|crap)|Bogus")


@contextmanager
def captured_messages() -> Iterator[list[str]]:
    """Collect the lines that libjpeg writes to standard error; pass on all other lines."""
    found: list[str] = []
    with tempfile.TemporaryFile() as caught:
        real = os.dup(_STDERR)
        os.dup2(caught.fileno(), _STDERR)
        try:
            yield found
        finally:
            os.dup2(real, _STDERR)
            caught.seek(0)
            for line in caught.read().splitlines(keepends=True):
                text = line.decode(errors="replace").strip()
                if _JPEG.search(text):
                    found.append(text)
                else:
                    os.write(real, line)
            os.close(real)
