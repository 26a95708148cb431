"""A grabber for tests: gray frames whose pixels are their number, as of a file or of a camera."""

import os
import re
import time

import numpy as np

from y7edge.errors import SourceError, SourceTimeout
from y7edge.sources.base import Captured


def grabber(options):
    if options.get("open_s"):
        time.sleep(options["open_s"])
    if options.get("prints"):
        print(options["prints"], flush=True)
    if options.get("blocks"):
        re.match(r"(a+)+$", "a" * 60 + "b")  # takes years, and never releases the GIL
    if options.get("hoards"):
        np.empty(options["hoards"], np.uint8)
    if options.get("exits"):
        os._exit(options["exits"])
    if options.get("refuses"):
        raise SourceError(options["refuses"])
    return Numbered(**{"sizes": [[64, 48]], "count": 20, **options})


class Numbered:
    backend = "test"
    detail = "numbered"

    def __init__(
        self,
        sizes,
        count,
        live=False,
        skip=0,
        pause_s=0.0,
        format="bgr",
        close_s=0.0,
        hiccup_s=0.0,
        chatter=0,
        **_,
    ):
        self.hiccup_s, self.chatter = hiccup_s, chatter
        self.sizes, self.count, self.live, self.skip = sizes, count, live, skip
        self.pause_s, self.format, self.close_s = pause_s, format, close_s
        self.number = 0

    def grab(self, timeout):
        if self.number >= self.count:
            if not self.live:
                return None
            time.sleep(timeout)
            raise SourceTimeout("no more frames")
        time.sleep(self.pause_s or 0.02 * self.live)
        if self.number == 5:
            time.sleep(self.hiccup_s)
        os.write(2, b"x" * self.chatter) if self.chatter else None
        width, height = self.sizes[self.number % len(self.sizes)]
        rows = height * 3 // 2 if self.format == "nv12" else height
        row = width if self.format == "nv12" else 3 * width
        plane = np.full((rows, row + 8), self.number, np.uint8)  # padded rows
        planes = (plane[:height], plane[height:]) if self.format == "nv12" else (plane,)
        self.number += 1
        skipped = self.skip if self.number > 1 else 0
        stamp = time.monotonic_ns()
        return Captured(planes, (width, height), self.format, stamp, "arrival", skipped)

    def close(self):
        time.sleep(self.close_s)
