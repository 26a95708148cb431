"""Jetson boards, recognised from recorded and made-up system files."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from y7edge import environment, jetson
from y7edge.cli import main

RECORDED = Path(__file__).parent / "reference" / "jetson"
RELEASES = (RECORDED / "nv_tegra_release.txt").read_text().splitlines()
BOARDS = json.loads((RECORDED / "boards.json").read_text())["boards"]
MODES = json.loads((RECORDED / "power_modes.json").read_text())["files"]
CLOCKS = (RECORDED / "jetson_clocks.txt").read_text()


class Board:
    """System files of a board in a temporary folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name, path in {
            "_RELEASE": "etc/nv_tegra_release",
            "_DPKG": "dpkg/status",
            "_TREE": "tree",
            "_SOC": "soc0",
            "_MODES": "etc/nvpmodel.conf",
            "_MODE": "nvpmodel/status",
            "_BOOT": "etc/nv_boot_control.conf",
            "_CPUFREQ": "cpufreq",
            "_DEVFREQ": "devfreq",
            "_CUDA": "cuda",
        }.items():
            monkeypatch.setattr(jetson, name, folder / path)
        monkeypatch.setattr(jetson, "_PROGRAMS", str(folder / "bin"))
        monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
        # Loading every engine takes seconds, and tests/test_environment.py does it.
        engines = (environment.Backend("onnxrt", (".onnx",), True, "", {}, ("cpu",)),)
        monkeypatch.setattr(environment, "_backends", lambda: engines)

    def write(self, path: str, text: str | bytes) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    def program(self, name: str, script: str) -> None:
        self.write(f"bin/{name}", f"#!/bin/sh\n{script}\n").chmod(0o755)

    def tree(self, model: str, compatible: list[str]) -> None:
        self.write("tree/model", f"{model}\0")
        self.write("tree/compatible", "".join(f"{name}\0" for name in compatible))

    def packages(self, **versions: str) -> None:
        stanzas = [
            f"Package: {name.replace('_', '-')}\nStatus: install ok installed\nPriority: optional\n"
            f"Version: {version}\nDescription: one\n two\n"
            for name, version in versions.items()
        ]
        self.write("dpkg/status", "\n".join(stanzas))

    def modes(self, names: dict[str, str], default: int | None, current: int | None) -> None:
        """Write a power mode file in NVIDIA's format, with a link to it, and the status."""
        lines = ["# comment < POWER_MODEL ID=99 NAME=NONE >", "< PARAM TYPE=CLOCK NAME=GPU >"]
        for mode, name in names.items():
            lines += [f"< POWER_MODEL ID={mode} NAME={name} >", "CPU_ONLINE CORE_0 1", ""]
            lines += ["GPU MAX_FREQ -1"]
        lines += [] if default is None else [f"< PM_CONFIG DEFAULT={default} >"]
        target = self.write("etc/nvpmodel/nvpmodel_board.conf", "\n".join(lines))
        (self.folder / "etc/nvpmodel.conf").symlink_to(target)
        if current is not None:
            self.write("nvpmodel/status", f"pmode:{current:04d} fmode:quiet\n")

    def clocks(self, cpu: tuple[int, int], gpu: tuple[int, int]) -> None:
        for kind, value in zip(("min", "max"), cpu, strict=True):
            self.write(f"cpufreq/policy0/scaling_{kind}_freq", f"{value}\n")
        for kind, value in zip(("min", "max"), gpu, strict=True):
            self.write(f"devfreq/17000000.gpu/{kind}_freq", f"{value}\n")
            self.write(f"devfreq/15340000.vic/{kind}_freq", kind)

    def orin_nano(self) -> None:
        """Write the files of an Orin Nano Super with JetPack 7.2.1 in its 25W mode."""
        self.write("etc/nv_tegra_release", RELEASES[9] + "\n# KERNEL_VARIANT: oot\n")
        self.tree(*BOARDS[0][:2])
        self.packages(
            nvidia_jetpack="7.2.1-b49",
            nvidia_l4t_core="39.2.1-20260806224157",
            libnvinfer10="10.16.2.10-1+cuda13.2",
            bash="5.2",
        )
        self.modes(MODES[3][2], 1, 1)
        self.write(
            "etc/nv_boot_control.conf",
            "TNSPEC 3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-super-\nCOMPATIBLE_SPEC x\n",
        )
        self.clocks((729600, 1344000), (306000000, 918000000))


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(tmp_path, monkeypatch)


def find() -> jetson.Jetson:
    found = jetson.find()
    assert found is not None
    return found


# --- L4T and JetPack ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        (RELEASES[0], "32.7.1", "4.6.1"),
        (RELEASES[1], "34.1.1", "5.0.1 DP"),
        (RELEASES[2], "35.3.1", "5.1.1"),
        (RELEASES[3], "35.4.1", "5.1.2"),
        (RELEASES[4], "36.4.3", "6.2"),
        (RELEASES[5], "36.4.7", "6.2.1"),
        (RELEASES[6], "38.2.0", "7.0"),
        (RELEASES[7], "38.2.2", "7.0"),
        (RELEASES[8], "39.2.0", "7.2"),
        (RELEASES[9], "39.2.1", "7.2.1"),
        ("# R32 (release), REVISION: 1.0", "32.1.0", None),
        ("# R36 (release), REVISION: 3", "36.3.0", "6.0"),
        ("# R41 (release), REVISION: 9.9, GCID: 1", "41.9.9", None),
    ],
)
def test_every_recorded_release_line(
    board: Board, line: str, l4t: str, jetpack: str | None
) -> None:
    tail = "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\nINSTALL_TYPE=\n"
    board.write("etc/nv_tegra_release", f"{line}\n{tail}")
    found = find()
    assert (found.l4t, found.jetpack) == (l4t, jetpack)
    assert found.jetpack_source == (f"L4T {l4t}" if jetpack else None)
    assert f"L4T {l4t}" in found.title()
    assert f"JetPack {jetpack or 'not known'}" in found.title()


def test_all_lines_are_recorded() -> None:
    assert len(RELEASES) == 10


@pytest.mark.parametrize(
    "text", ["", "R36 (release)", "# R36 (release), REVISION:", "# R36 (beta), REVISION: 4.3", "\0"]
)
def test_other_text_is_not_a_release(board: Board, text: str) -> None:
    board.write("etc/nv_tegra_release", text)
    assert jetson.find() is None


@pytest.mark.parametrize(
    ("version", "jetpack"),
    [("5.1.6-b5", "5.1.6"), ("6.2.2+b24", "6.2.2"), ("7.2-b184", "7.2"), ("7.2.1-b49", "7.2.1")],
)
def test_the_package_states_jetpack(board: Board, version: str, jetpack: str) -> None:
    board.write("etc/nv_tegra_release", RELEASES[4])
    board.packages(nvidia_jetpack=version)
    assert (find().jetpack, find().jetpack_source) == (jetpack, "package nvidia-jetpack")


@pytest.mark.parametrize(
    ("version", "l4t"),
    [
        ("35.6.4-20260126234748", "35.6.4"),
        ("36.5.0-20260115194252", "36.5.0"),
        ("39.2.0-20260601141651", "39.2.0"),
        ("39.2.1-20260806224157", "39.2.1"),
    ],
)
def test_the_package_of_l4t_counts_without_a_release_file(
    board: Board, version: str, l4t: str
) -> None:
    board.tree(*BOARDS[0][:2])
    board.packages(nvidia_l4t_core=version)
    assert find().l4t == l4t


def test_removed_packages_do_not_count(board: Board) -> None:
    board.tree(*BOARDS[0][:2])
    text = "Package: {}\nStatus: {}\nVersion: 1.0\n\n"
    states = {
        "nvidia-jetpack": "deinstall ok config-files",
        "libnvinfer8": "install ok half-installed",
        "libnvinfer10": "hold ok installed",
        "libnvinfer10-dev": "install ok installed",
    }
    board.write("dpkg/status", "".join(text.format(*state) for state in states.items()))
    assert find().packages == {"libnvinfer10": "1.0"}
    assert find().jetpack is None


# --- board ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "compatible", "soc", "module", "name"), BOARDS, ids=[board[0] for board in BOARDS]
)
def test_every_recorded_device_tree(
    board: Board, model: str, compatible: list[str], soc: str, module: str, name: str
) -> None:
    board.tree(model, compatible)
    found = find()
    assert found.model == model  # without NUL
    assert (found.soc, found.module, found.module_name) == (soc, module, name)
    assert not found.problems


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *((f"p3448-{variant}", "Jetson Nano") for variant in ("0000", "0002")),
        ("p3448-0003", "Jetson Nano 2 GB"),
        *((f"p3668-{variant}", "Jetson Xavier NX") for variant in ("0000", "0001")),
        ("p3668-0003", "Jetson Xavier NX 16 GB"),
        *((f"p2888-{n}", "Jetson AGX Xavier") for n in ("0001", "0003", "0004", "0006")),
        ("p2888-0005", "Jetson AGX Xavier 64 GB"),
        ("p2888-0008", "Jetson AGX Xavier Industrial"),
        ("p3767-0001", "Jetson Orin NX 8 GB"),
        ("p3767-0003", "Jetson Orin Nano 8 GB"),
        ("p3767-0004", "Jetson Orin Nano 4 GB"),
        ("p3701-0000", "Jetson AGX Orin"),
        ("p3701-0004", "Jetson AGX Orin 32 GB"),
        ("p3701-0008", "Jetson AGX Orin Industrial"),
        ("p3834-0000", "Jetson T4000 (Thor)"),
        ("p3310-1000", "Jetson TX2"),
        ("p3767-9999", "Jetson Orin NX or Orin Nano"),
        ("p9999-0000", None),
    ],
)
def test_every_known_module(board: Board, part: str, name: str | None) -> None:
    board.tree("a carrier of another maker", [f"maker,p1234-0000+{part}-x", "nvidia,tegra234"])
    assert (find().module, find().module_name) == (part, name)


def test_in_a_container_without_device_tree(board: Board) -> None:
    board.write("soc0/family", "Tegra\n")
    board.write("soc0/soc_id", "35\n")
    board.write("soc0/machine", "NVIDIA Jetson AGX Orin Developer Kit\n")
    found = find()
    assert (found.soc, found.model) == ("tegra234", "NVIDIA Jetson AGX Orin Developer Kit")
    assert found.title().endswith("JetPack not known, L4T not known")


def test_other_machines_are_not_jetsons(board: Board) -> None:
    assert jetson.find() is None
    board.tree("Raspberry Pi 4 Model B", ["raspberrypi,4-model-b", "brcm,bcm2711"])
    board.write("soc0/family", "Tegra\n")
    board.write("soc0/soc_id", "53\n")
    assert jetson.find() is None
    board.tree("Tegra3 tablet", ["asus,tf300t", "nvidia,tegra30"])
    assert jetson.find() is None


def test_a_release_file_written_by_hand(board: Board) -> None:
    board.write("etc/nv_tegra_release", "# R36 (release), REVISION: 3.0\n")
    (problem,) = find().problems
    assert "neither" in problem and "written by hand" in problem
    board.tree(*BOARDS[6][:2])  # a Nano
    (problem,) = find().problems
    assert problem == "the board has a tegra210, but L4T 36.3.0 supports tegra234 only"
    board.tree(*BOARDS[0][:2])
    assert not find().problems
    board.packages(nvidia_l4t_core="36.4.3-20250107174145")
    (problem,) = find().problems
    assert "states L4T 36.3.0, but the package nvidia-l4t-core is 36.4.3" in problem


# --- power mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "names", "default", "fastest"),
    [entry[1:] for entry in MODES],
    ids=[entry[0] for entry in MODES],
)
def test_every_recorded_table_of_power_modes(
    board: Board, file: str, names: dict[str, str], default: int | None, fastest: int
) -> None:
    board.tree(*BOARDS[3][:2])
    for current in map(int, names):
        board.folder.joinpath("etc/nvpmodel.conf").unlink(missing_ok=True)
        board.modes(names, default, current)
        power, warnings = find().power, find().warnings
        assert power is not None
        assert power.names == {int(mode): name for mode, name in names.items()}
        assert (power.current, power.current_name) == (current, names[str(current)])
        assert (power.default, power.fastest) == (default, fastest)
        assert power.file.endswith("nvpmodel_board.conf")
        if current == fastest:
            assert not warnings
        else:
            (warning,) = warnings
            assert f"the power mode is {names[str(current)]}, but " in warning
            assert f"< POWER_MODEL ID={fastest} NAME={names[str(fastest)]} >" in warning
            assert warning.endswith(f": sudo nvpmodel -m {fastest}")
    assert file.startswith("nvpmodel_")


def test_names_without_a_power_do_not_warn(board: Board) -> None:
    board.tree(*BOARDS[3][:2])
    board.modes({"0": "QUIET", "1": "LOUD"}, None, 0)
    power = find().power
    assert power and power.fastest is None
    assert not find().warnings


@pytest.mark.parametrize("status", [None, "pmode:9\n", "fmode:quiet\n", "pmode:\n"])
def test_nvpmodel_is_asked_if_the_status_is_not_known(board: Board, status: str | None) -> None:
    board.tree(*BOARDS[0][:2])
    board.modes(MODES[3][2], 1, None)
    if status:
        board.write("nvpmodel/status", status)
    assert find().power.current is None
    assert "power mode not known" in find().settings()
    board.program(
        "nvpmodel",
        'test "$*" = -q && printf "NVPM WARN: fan mode is not set!\\nNV Power Mode: 25W\\n1\\n"',
    )
    assert find().power.current == 1
    board.program("nvpmodel", 'printf "NV Power Mode: 7W\\n1\\n"')  # contradicts the file
    assert find().power.current is None
    board.program("nvpmodel", 'printf "NV Power Mode: 25W\\n1\\n"; exit 1')
    assert find().power.current is None


def test_nvpmodel_hangs(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson, "_SECONDS", 0.2)
    board.tree(*BOARDS[0][:2])
    board.modes(MODES[3][2], 1, None)
    board.program("nvpmodel", "exec sleep 20")
    assert find().power.current is None


@pytest.mark.parametrize(
    ("l4t", "warned"),
    [("36.4.3", True), ("39.2.1", True), ("36.4.0", False), ("35.6.4", False)],
)
def test_a_board_that_was_flashed_without_super_modes(board: Board, l4t: str, warned: bool) -> None:
    def warnings() -> list[str]:
        return [text for text in find().warnings if "without the super power modes" in text]

    board.orin_nano()
    assert find().super_flashed is True
    major, _, revision = l4t.partition(".")
    board.write("etc/nv_tegra_release", f"# R{major} (release), REVISION: {revision}, GCID: 1")
    board.write("etc/nv_boot_control.conf", "TNSPEC 3767-300-0005-S.1-1-1-jetson-orin-nano-devkit-")
    assert find().super_flashed is False
    assert not warnings()  # the modes are in the file
    (board.folder / "etc/nvpmodel.conf").unlink()
    board.modes(MODES[2][2], None, 0)
    assert bool(warnings()) is warned  # JetPack 6.2 is the first with these modes


# --- clocks ---------------------------------------------------------------------------------------


def test_clocks(board: Board) -> None:
    board.tree(*BOARDS[0][:2])
    assert find().clocks.pinned is None
    board.clocks((729600, 1344000), (306000000, 918000000))
    clocks = find().clocks
    assert clocks.limits == {"cpu0": (729.6, 1344.0), "gpu": (306.0, 918.0)}
    assert clocks.unknown == {"emc": "needs root"}
    assert clocks.pinned is False
    assert find().warnings == ("clocks are not pinned (cpu0, gpu): sudo jetson_clocks",)
    board.clocks((1344000, 1344000), (306000000, 918000000))
    assert find().warnings == ("clocks are not pinned (gpu): sudo jetson_clocks",)
    board.clocks((1344000, 1344000), (918000000, 918000000))
    assert find().clocks.pinned is True
    assert "clocks pinned" in find().settings()
    assert not find().warnings


def test_the_clocks_of_thor_are_not_read(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.tree(*BOARDS[4][:2])
    board.clocks((1, 1), (1, 2))
    clocks = find().clocks
    assert clocks.limits == {"cpu0": (0.001, 0.001)}
    assert clocks.unknown == {"emc": "not read on Thor", "gpu": "not read on Thor"}
    # jetson_clocks --show reads the same files.
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    board.program("jetson_clocks", f"touch {board.folder / 'asked'}")
    assert find().clocks == clocks
    assert not (board.folder / "asked").exists()


def test_recorded_output_of_jetson_clocks() -> None:
    limits = {"cpu0": (729.6, 1344.0), "gpu": (306.0, 918.0), "emc": (204.0, 3199.0)}
    assert jetson.clocks_of(CLOCKS) == limits
    tx2 = (
        "cpu0: Online=1 Governor=schedutil MinFreq=345600 MaxFreq=2035200 CurrentFreq=345600\n"
        "cpu1: Online=0 Governor=schedutil MinFreq=345600 MaxFreq=2035200 CurrentFreq=345600\n"
        "EMC MinFreq=40800000 MaxFreq=1866000000 CurrentFreq=1866000000 FreqOverride=1\n"
        "Fan: speed=0\n"
    )
    assert jetson.clocks_of(tx2) == {"cpu0": (345.6, 2035.2), "emc": (1866.0, 1866.0)}


def test_root_also_learns_the_clock_of_the_memory(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.tree(*BOARDS[0][:2])
    board.write("shown", CLOCKS)
    board.program("jetson_clocks", f'test "$*" = --show && cat {board.folder / "shown"}')
    assert not find().clocks.limits
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    assert find().clocks.limits["emc"] == (204.0, 3199.0)
    assert find().clocks.pinned is False and not find().clocks.unknown


def test_opencv_of_pypi_in_place_of_jetpacks(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"cv2": ["opencv-python-headless"]}
    monkeypatch.setattr(environment.metadata, "packages_distributions", lambda: packages)
    assert environment.check().opencv["problem"] is None  # another machine
    board.orin_nano()
    problem = environment.check().opencv["problem"]
    assert "hides JetPack's OpenCV" in problem
    assert problem.endswith("pip uninstall opencv-python-headless")
    packages["cv2"] = []  # that of JetPack
    assert environment.check().opencv["problem"] is None


# --- hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "pipe", "large", "noise", "loop"])
def test_hostile_files_count_as_unknown(board: Board, kind: str) -> None:
    board.orin_nano()
    places = ("etc/nv_tegra_release", "dpkg/status", "etc/nvpmodel.conf", "nvpmodel/status")
    places += ("tree/model", "cpufreq/policy0/scaling_min_freq", "etc/nv_boot_control.conf")
    for place in places:
        path = board.folder / place
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "noise":
            path.write_bytes(bytes(range(256)) * 64)
        else:
            path.touch()
            os.truncate(path, 65 << 20)
    found = find()
    assert found.soc == "tegra234"  # still readable
    assert (found.l4t, found.jetpack, found.power) == (None, None, None)
    assert found.packages == {}
    assert "cpu0" not in found.clocks.limits


@pytest.mark.parametrize(
    "text",
    [
        *("x" + "\n" * 200_000 + "x", "< POWER_MODEL" + " " * 200_000, " " * 200_000 + "x"),
        *("NV Power Mode: x" + " " * 200_000 + "y", "cpu0 " + "a" * 200_000),
    ],
    ids=["lines", "spaces", "indented", "name", "word"],
)
def test_hostile_text_takes_no_time(text: str) -> None:
    begin = time.process_time()
    assert not jetson.modes_of(text, status=text).names
    assert jetson.query_of(text) is None and jetson.l4t_of(text) is None
    assert not jetson.clocks_of(text)
    assert time.process_time() - begin < 2


def test_values_are_bounded(board: Board) -> None:
    board.tree("x" * 5000, ["nvidia,tegra234", *["y"] * 5000])
    names = {str(mode): f"MODE_{mode}W" for mode in range(5000)}
    board.modes(names, 10**30, 10**30)
    board.clocks((10**40, 10**40), (1, 1))
    found = find()
    assert found.model == "x" * 200
    assert found.power and len(found.power.names) == 256
    assert found.power.default is found.power.current is None
    assert found.clocks.limits == {"gpu": (1e-6, 1e-6)}


# --- commands -------------------------------------------------------------------------------------


def test_check_describes_the_board(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.orin_nano()
    assert main(["check"]) == 0
    text = capsys.readouterr().out
    for part in (
        "Jetson: NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super, JetPack 7.2.1,",
        "module p3767-0005 (Jetson Orin Nano 8 GB), tegra234",
        "power mode 1 25W; ",
        "nvpmodel_board.conf has 0 15W, 1 25W, 2 MAXN_SUPER",
        "clocks not pinned: cpu0 729.6 to 1344 MHz, gpu 306 to 918 MHz, emc needs root",
        "/usr/local/cuda: missing",
        "libnvinfer10 10.16.2.10-1+cuda13.2",
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >: sudo nvpmodel -m 2",
        "warning: clocks are not pinned (cpu0, gpu): sudo jetson_clocks",
    ):
        assert part in text
    assert main(["check", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["jetson"]
    assert record == json.loads(json.dumps(asdict(find())))
    assert record["power"]["fastest"] == 2
    assert len(record["warnings"]) == 2


def test_check_of_opencv(
    board: Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest OpenCV of PyPI replaces NumPy 1, so JetPack's is named."""
    own = "JetPack's OpenCV (sudo apt install nvidia-opencv)"
    found = {"installed": False, "version": None, "problem": "No module named 'cv2'", "video": []}
    monkeypatch.setattr(environment, "_opencv", lambda **_: dict(found))
    board.orin_nano()
    assert main(["check"]) == 3
    assert f"no: needs {own}\n" in capsys.readouterr().out


def test_check_of_gstreamer(
    board: Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An environment that finds another GStreamer than JetPack's."""
    found = environment.GStreamer(True, None, "1.20.3", {}, ("nvvidconv",))
    monkeypatch.setattr(environment, "_look_for_gstreamer", lambda: lambda: found)
    assert main(["check"]) == 0
    assert "GStreamer lacks" not in capsys.readouterr().out  # another machine
    board.orin_nano()
    assert main(["check"]) == 0
    text = capsys.readouterr().out
    assert "GStreamer: 1.20.3, of a Jetson: nvvidconv\n" in text
    assert (
        "GStreamer lacks nvarguscamerasrc, nvjpegdec, nvv4l2decoder: sudo apt install "
        "nvidia-l4t-gstreamer\n" in text
    )


def test_check_of_an_unknown_board(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    board.write("etc/nv_tegra_release", "# R41 (release), REVISION: 1.0")
    (board.folder / "cuda-13.9").mkdir()
    (board.folder / "cuda").symlink_to(board.folder / "cuda-13.9")
    assert main(["check"]) == 0
    text = capsys.readouterr().out
    assert "Jetson: board not known, JetPack not known, L4T 41.1.0" in text
    assert f"/usr/local/cuda: {board.folder / 'cuda-13.9'}" in text
    assert "problem: " in text


def test_other_machines_have_no_section(board: Board, capsys: pytest.CaptureFixture[str]) -> None:
    assert environment.check().jetson is None
    assert main(["check"]) == 0
    assert "Jetson" not in capsys.readouterr().out
