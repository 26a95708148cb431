"""docs/jetson.md agrees with the code: versions, rails, and what the commands print."""

from __future__ import annotations

import json
import re
from pathlib import Path

from y7edge import jetson, tegrastats
from y7edge.benchmark.power import Power

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d+(?:\.\d+)+")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its header."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def expanded(cell: str, known: list[str]) -> list[str]:
    """The versions that a cell names, such as "1.0, 1.2 to 1.4"."""
    found: list[str] = []
    for part in cell.split(","):
        ends = NUMBER.findall(part)
        low, high = key(ends[0]), key(ends[-1])
        found += [version for version in known if low <= key(version) <= high]
        assert ends[0] in known and ends[-1] in known, part
    return found


def test_the_table_has_the_versions_of_the_code() -> None:
    known = {l4t: jp for l4t, jp in jetson._JETPACK.items() if NUMBER.fullmatch(jp)}
    listed: list[str] = []
    for jetpack, l4t, *_ in rows("JetPack versions"):
        here = expanded(l4t, sorted(known, key=key))
        versions = sorted({known[version] for version in here}, key=key)
        assert versions == expanded(jetpack, sorted(set(known.values()), key=key))
        listed += here
    # Revisions that have the JetPack number of a listed version, and JetPack 5.0, are left out.
    assert set(known) - set(listed) == {"35.1.0", "36.4.2"}
    assert len(listed) == len(set(listed))


def test_boards_of_the_table_are_those_that_l4t_supports() -> None:
    chips = {"Nano": "tegra210", "TX2": "tegra186", "Xavier": "tegra194", "Orin": "tegra234"}
    chips["Thor"] = "tegra264"
    for _, l4t, _, _, _, boards, _ in rows("JetPack versions"):
        boards = boards.partition(";")[0]
        named = {chip for board, chip in chips.items() if re.search(rf"\b{board}\b", boards)}
        assert named == set(jetson._SUPPORTED[l4t.partition(".")[0]])


def test_every_link_of_the_table_has_a_target() -> None:
    used = set(re.findall(r"\]\[([\w.]+)\]", TEXT))
    assert used == set(re.findall(r"^\[([\w.]+)\]: https://", TEXT, re.MULTILINE))


def test_rails() -> None:
    listed = [
        re.findall(r"\w+", re.findall("`(.*?)`", rail)[0]) for _, rail in rows("Energy per frame")
    ]
    assert sorted(listed) == sorted(
        [*([name] for name in tegrastats._TOTAL), *map(list, tegrastats._SUMS)]
    )


def test_the_example_of_the_energy() -> None:
    path = ROOT / "tests" / "reference" / "jetson" / "tegrastats.json"
    lines = {entry["name"]: entry["line"] for entry in json.loads(path.read_text())}
    sample = tegrastats.parse(lines["JetPack 7.2.1, Orin Nano"])
    assert sample is not None
    (rail,) = sample.total_rails()
    power = sample.rails[rail].now
    found = Power(rail, power, 10.0, power * 10 / 1e3, {}, {}, {}, 50, 100, 500, 5.0)
    assert f"\n{found.lines()[0]}\n" in TEXT


def test_the_example_of_the_warnings() -> None:
    modes = jetson.PowerModes(
        "/etc/nvpmodel/nvpmodel_p3767_0003_super.conf",
        {0: "15W", 1: "25W", 2: "MAXN_SUPER"},
        current=1,
        fastest=2,
    )
    clocks = jetson.Clocks({"cpu0": (729.6, 1344.0), "gpu": (306.0, 918.0)}, False)
    unknown = (None,) * 7
    board = jetson.Jetson(*unknown[:7], {}, None, None, modes, clocks)
    for warning in jetson._warnings(board):
        assert f"\nwarning: {warning}\n" in TEXT


def test_the_number_of_recorded_samples_in_support() -> None:
    folder = ROOT / "tests" / "reference" / "jetson"
    support = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    releases = len((folder / "nv_tegra_release.txt").read_text().splitlines())
    boards = len(json.loads((folder / "boards.json").read_text())["boards"])
    tables = len(json.loads((folder / "power_modes.json").read_text())["files"])
    lines = [entry["verbatim"] for entry in json.loads((folder / "tegrastats.json").read_text())]
    assert f"{releases} recorded release files (L4T 32.7 to 39.2) and {boards} device" in support
    assert f"{tables} recorded tables of modes" in support
    assert f"{lines.count(True)} recorded lines, and with {lines.count(False)} of which" in support


def test_the_page_says_that_it_was_not_run() -> None:
    assert "**Nothing on this page was run on a Jetson.**" in TEXT
