"""Files below a folder, with a note of the folders that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

from y7edge.doctor.records import Scan


def files_below(scan: Scan, folder: Path) -> list[Path]:
    """All files below a folder in order; links to folders are not followed."""

    def note(error: OSError) -> None:
        path = Path(error.filename or folder)
        if not any(t.check == "folder" and t.file == path for t in scan.troubles):
            words = f"cannot be read: {error.strerror}; what is in it is missing here"
            scan.trouble("folder", words, path)

    walk = os.walk(folder, onerror=note)
    return sorted(Path(top) / name for top, _, names in walk for name in names)
