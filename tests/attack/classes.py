"""List of all classes of inputs."""

from __future__ import annotations

from tests.attack import (
    artifacts,
    changing,
    checkpoints,
    images,
    options,
    pickles,
    places,
    runs,
    sets,
    settings,
    side_files,
)

MODULES = (
    *(sets, images, settings, pickles, checkpoints, runs, artifacts, side_files, places, options),
    changing,
)
ALL = tuple(attack for module in MODULES for attack in module.ATTACKS)
