"""Temperature and power of this machine, as far as it states them to every user.

Temperatures are those of tegrastats on a Jetson, else of the thermal zones of Linux
(https://docs.kernel.org/driver-api/thermal/sysfs-api.html). Power is that of tegrastats.
"""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from y7edge.files import read_regular
from y7edge.tegrastats import Monitor

_ZONES = Path("/sys/class/thermal")
_MAX_ZONES = 64
_RANGE = (-40.0, 150.0)  # degrees; sensors that are off state values far outside
_INTERVAL_MS = 2000


class Board:
    """Read temperature and power; a context manager, which runs tegrastats if there is one."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._monitor: Monitor | None = None

    def __enter__(self) -> Board:
        if shutil.which("tegrastats"):
            self._monitor = self._stack.enter_context(Monitor(_INTERVAL_MS, keep=1))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self) -> dict[str, Any]:
        """Return what is known now, as values for JSON.

        Returns:
            "celsius" and "sensor" of the hottest sensor; "watts" and "rail" of the whole board.
        """
        monitor = self._monitor
        sample = monitor.newest if monitor and monitor.running() else None
        degrees = dict(sample.temperatures) if sample else {}
        found: dict[str, Any] = {}
        if hottest := max((degrees or _zones()).items(), key=lambda item: item[1], default=None):
            found |= {"sensor": hottest[0], "celsius": round(hottest[1], 1)}
        if sample and (rails := sample.total_rails()):
            watts = sum(sample.rails[name].now for name in rails) / 1000
            found |= {"rail": " + ".join(rails), "watts": round(watts, 1)}
        return found


def _zones() -> dict[str, float]:
    """Return degrees Celsius by the name of the thermal zone; {} where there are none."""
    found: dict[str, float] = {}
    try:
        zones = sorted(_ZONES.glob("thermal_zone*"))[:_MAX_ZONES]
    except OSError:
        return found
    for zone in zones:
        name, text = _text(zone / "type"), _text(zone / "temp")
        if re.fullmatch(r"-?[0-9]{1,9}", text) and _RANGE[0] < int(text) / 1000 < _RANGE[1]:
            found[name or zone.name] = int(text) / 1000
    return found


def _text(path: Path) -> str:
    try:
        return read_regular(path, 4096).decode("utf-8", "replace").strip()[:64]
    except OSError:  # a sensor whose unit is off cannot be read
        return ""
