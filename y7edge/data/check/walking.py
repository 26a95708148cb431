"""Files below a folder, with a note of the folders that cannot be read or are not followed."""

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

    found = []
    for top, folders, names in os.walk(folder, onerror=note):
        found += [Path(top) / name for name in names]
        for path in (Path(top) / name for name in folders):
            if path.is_symlink() and not any(t.file == path for t in scan.troubles):
                words = "is a link to a folder, which is not followed: name that in the data.yaml"
                scan.trouble("linked_folder", f"{words}, or copy it here", path)
    return sorted(found)


def forget_known_links(scan: Scan) -> None:
    """Take back what was said of links to folders that were read, by this way or another."""
    known = set(scan.folders)
    for picture in scan.pictures.values():
        known |= {path.parent for path in (picture.path, picture.label_file) if path}
    above = {parent for folder in known for parent in folder.parents}
    targets = {os.path.realpath(folder) for folder in known}
    scan.troubles = [
        trouble
        for trouble in scan.troubles
        if trouble.check != "linked_folder"
        or (trouble.file not in known | above and os.path.realpath(trouble.file) not in targets)
    ]
