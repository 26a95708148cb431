"""docs/cameras.md: it lists every option with its schemes, and its examples are valid."""

import re
from pathlib import Path

import pytest

from y7edge.sources.address import SHARED, parse
from y7edge.sources.launch import LATENCY_MS, SIZE, TIMEOUT_S, check
from y7edge.sources.options import OPTIONS, option_name

TEXT = (Path(__file__).parents[2] / "docs" / "cameras.md").read_text(encoding="utf-8")
TABLE = TEXT.split("| option |")[1].split("\n\n")[0]
ROWS = [line.split("|")[1:-1] for line in TABLE.splitlines()[2:]]
SCHEMES = {
    "all cameras and streams": {"csi", "v4l2", "rtsp", "rtp", "http"},
    "all": {"csi", "v4l2", "rtsp", "rtp", "http", "gst"},
    "v4l2 and streams": {"v4l2", "rtsp", "rtp", "http"},
}


def options_of_the_table():
    found, names = {}, []
    for row in ROWS:
        assert len(row) == 3
        names = re.findall(r"`(\w+)`", row[0]) or names
        schemes = SCHEMES.get(row[1].strip()) or set(row[1].strip().split(", "))
        for name in names:
            found.setdefault(option_name(name), set()).update(schemes)
    return found


def test_every_option_is_listed():
    found = options_of_the_table()
    assert {name for name in found if name not in OPTIONS} == set(SHARED)
    for name, option in OPTIONS.items():
        assert found[name] == option.schemes - {"rtsps", "https"}, name


def test_defaults():
    for value in (f"{SIZE[0]}x{SIZE[1]}", f"in ms ({LATENCY_MS})", f"an error ({TIMEOUT_S:g})"):
        assert value in TEXT


URIS = re.findall(r'["`]((?:csi|v4l2|rtsp|rtp|http|gst)://[^"`]+)["`]', TEXT)


@pytest.mark.parametrize("uri", URIS)
def test_uris(uri):
    address = parse(uri)
    check(address.scheme, address.place, address.options)


def test_there_are_examples():
    assert len(URIS) > 8
