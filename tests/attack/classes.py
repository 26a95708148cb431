"""All classes of inputs."""

from __future__ import annotations

from tests.attack import artifacts, checkpoints, options, places, runs, sets, settings

ALL = (
    *sets.ATTACKS,
    *settings.ATTACKS,
    *checkpoints.ATTACKS,
    *runs.ATTACKS,
    *artifacts.ATTACKS,
    *places.ATTACKS,
    *options.ATTACKS,
)
