"""All classes of inputs."""

from __future__ import annotations

from tests.attack import (
    artifacts,
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
)
ALL = tuple(attack for module in MODULES for attack in module.ATTACKS)
