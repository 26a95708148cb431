"""Check a wheel and a source distribution as users get them: in empty environments.

    make dist PYTHONS="python3.11 python3.12" LOWEST=python3.10   builds both, then runs this script
    python tests/packaging/check_dist.py dist --python python3.12 --no-tests
    python tests/packaging/check_dist.py dist --lowest python3.10

First, the files: the wheel that was built through the source distribution has the same bytes as
one from this checkout, and the source distribution contains every file of the repository. Then, for
each interpreter: a new virtual environment, ``y7edge[cpu]`` from the wheel (in the first one from
the source distribution), ``pip check``, and the commands of a robot in an empty folder, without
torch and onnx. They must give the boxes that this checkout gives. A script of a user is checked by
mypy --strict, and the tests that need no torch run against the installed package.

``--lowest`` installs the oldest versions that pyproject.toml accepts, where it states one.

This script needs the environment of `make setup`, `build`, and a connection to a package index. The
environments are made in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# Git's own file, and the links that only a checkout needs: setuptools does not store links.
NOT_SHIPPED = {".gitignore", "y7edge/export", "y7edge/runtimes"}
ABSENT = ("torch", "onnx", "onnxsim", "safetensors", "yaml", "matplotlib", "aiohttp")
# The tests of detection, sources and the command line that use neither torch nor another extra.
TESTS = (
    *(f"tests/detect/test_{name}.py" for name in ("postprocess", "preprocess", "regions")),
    *(f"tests/detect/test_{name}.py" for name in ("detections", "drawing", "submission")),
    *(f"tests/artifact/test_{name}.py" for name in ("artifact", "manifest", "schema", "schema1")),
    *(f"tests/sources/test_{name}.py" for name in ("address", "capture", "replay", "ring", "uri")),
    *(f"tests/test_{name}.py" for name in ("boxes", "files", "frames", "jetson", "machine")),
    *("tests/test_text.py", "tests/test_tegrastats.py", "tests/cli/test_predict.py"),
)
USER = """
from pathlib import Path

import numpy as np
from y7edge import Detections, Detector, draw


def found(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> list[str]:
    with Detector(path) as detector:
        detections: Detections = detector(image)
        draw(image, detections)
        reveal_type(detections.xyxy)
        return [one.class_name for one in detections]
"""

Found = dict[str, object]  # a detection as `predict --json` prints it


class Failed(Exception):
    """What is wrong with the distributions, in words."""


def main() -> int:
    """Check the distributions in a folder; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds one wheel and one .tar.gz")
    parser.add_argument("--python", nargs="*", default=[], metavar="PROGRAM")
    parser.add_argument("--lowest", metavar="PROGRAM", help="with the oldest versions")
    parser.add_argument("--no-tests", action="store_true", help="only the commands")
    options = parser.parse_args()
    try:
        wheel, sdist = (one_file(options.folder, kind) for kind in ("*.whl", "*.tar.gz"))
        with tempfile.TemporaryDirectory(prefix="y7edge-dist-") as name:
            work = Path(name)
            check_files(wheel, sdist, work)
            expected = make_material(work)
            tests = None if options.no_tests else unpack_tests(sdist, work)
            jobs = [
                (python, [f"{wheel if index else sdist}[cpu]"])
                for index, python in enumerate(options.python)
            ]
            if options.lowest:
                jobs.append((options.lowest, [str(wheel), *lowest(wheel)]))
            good = [try_in(*job, work / f"env{i}", expected, tests) for i, job in enumerate(jobs)]
            return 0 if all(good) else 1
    except Failed as problem:
        print(f"failed: {problem}", file=sys.stderr)
        return 1


def one_file(folder: Path, kind: str) -> Path:
    """Return the only file of a kind."""
    files = list(folder.glob(kind))
    if len(files) != 1:
        raise Failed(f"expected one {kind} in {folder}, found {len(files)}: make dist")
    return files[0].resolve()


def run(command: list[str | Path], folder: Path = ROOT, **variables: str) -> str:
    """Return what a command prints; the checkout and the user's pip are out of its sight."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", **variables}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        text = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}".strip()
        raise Failed(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{text}")
    return done.stdout


# --- files ---------------------------------------------------------------------------------------


def check_files(wheel: Path, sdist: Path, work: Path) -> None:
    """Compare the distributions with this checkout, and with what they say of themselves."""
    if "SOURCE_DATE_EPOCH" not in os.environ:
        raise Failed("SOURCE_DATE_EPOCH must have the value that the wheel was built with")
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools would ship what is there
    run([sys.executable, "-m", "build", "--wheel", "--outdir", work / "again", ROOT])
    if one_file(work / "again", "*.whl").read_bytes() != wheel.read_bytes():
        raise Failed(f"{wheel.name} has other bytes than a wheel of this checkout")
    with tarfile.open(sdist) as tar:
        shipped = {name.partition("/")[2] for name in tar.getnames()}
    tracked = set(run(["git", "ls-files"]).splitlines()) - NOT_SHIPPED
    if lacking := sorted(tracked - shipped):
        raise Failed(f"not in {sdist.name}: {', '.join(lacking)}; MANIFEST.in names the files")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, the same bytes when built again")
    print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB, {len(tracked)} files")


def metadata(wheel: Path) -> Message:
    """Return the core metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def lowest(wheel: Path) -> list[str]:
    """Return requirements for exactly the oldest versions of what ``y7edge[cpu]`` installs."""
    extras = ("", "cpu", "opencv", "onnxruntime")
    pins = []
    for line in metadata(wheel).get_all("Requires-Dist", []):
        need = Requirement(line)
        if need.name != "y7edge" and (
            need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)
        ):
            (bound,) = (s.version for s in need.specifier if s.operator == ">=")
            pins.append(f"{need.name}=={bound}")
    return pins


# --- material that all environments use ----------------------------------------------------------


def make_material(work: Path) -> list[Found]:
    """Write ``parts.onnx`` and ``parts.png``, and return the detections of this checkout."""
    from cv2 import imwrite

    from y7edge.boxes import intersections
    from y7edge.data.synthetic.scenes import NAMES, scene
    from y7edge.export import export
    from y7edge.models import weights

    checkpoint = weights.load(ROOT / "tests" / "reference" / "demo.safetensors")
    export(checkpoint, work / "parts.onnx")
    image = scene(17, (480, 640))
    imwrite(str(work / "parts.png"), image.image)
    command = ["predict", work / "parts.onnx", work / "parts.png", "--json"]
    found = json.loads(run([sys.executable, "-m", "y7edge", *command]))["detections"]
    boxes = np.array([one["xyxy"] for one in found], np.float32)
    both = intersections(image.boxes, boxes)
    iou = both / (area(image.boxes)[:, None] + area(boxes) - both)
    labels = np.array([NAMES.index(str(one["class_name"])) for one in found])
    right = int(((iou > 0.5) & (image.class_id[:, None] == labels)).any(axis=1).sum())
    if right < 3:
        raise Failed(f"the demo's model finds {right} of {len(image.boxes)} parts: at least 3")
    return found


def area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the areas of float32 (n, 4) boxes as (n,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def unpack_tests(sdist: Path, work: Path) -> Path:
    """Return a folder with the tests of the source distribution, but without its packages."""
    with tarfile.open(sdist) as tar:
        top = tar.getnames()[0].split("/")[0]
        inside = [m for m in tar if re.match(rf"{top}/(tests/|docs/|pyproject\.toml)", m.name)]
        tar.extractall(work, members=inside)
    return work / top


# --- environments --------------------------------------------------------------------------------


def try_in(
    python: str, requirements: list[str], env: Path, expected: list[Found], tests: Path | None
) -> bool:
    """Return whether all is well with one interpreter, so that the next ones are tried too."""
    try:
        check_in(python, requirements, env, expected, tests)
    except Failed as problem:
        print(f"failed: {python} {requirements[0]}: {problem}", file=sys.stderr)
        return False
    return True


def check_in(
    python: str,
    requirements: list[str],
    env: Path,
    expected: list[Found],
    tests: Path | None,
) -> None:
    """Install into a new environment, run the commands and the tests, and print one line."""
    run([python, "-m", "venv", env])
    program, y7edge = env / "bin" / "python", env / "bin" / "y7edge"
    pip = [program, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", *requirements])
    run([*pip, "check"])
    size = sum(path.lstat().st_size for path in env.rglob("*")) / 1e6
    empty = env / "empty"
    empty.mkdir()
    facts = json.loads(run([program, "-c", FACTS.format(absent=ABSENT)], empty))
    if facts["present"] or Path(facts["file"]).is_relative_to(ROOT):
        raise Failed(f"{python}: installed {facts['present']}, y7edge is {facts['file']}")
    if facts["version"] != facts["stated"]:
        raise Failed(f"y7edge.__version__ is {facts['version']}, the package {facts['stated']}")
    check_commands([y7edge], empty, expected)
    check_commands([program, "-m", "y7edge"], empty, expected)
    check_types(program, empty)
    line = f"{python} {facts['python']}, {Path(requirements[0]).name}: ok, {size:.0f} MB; "
    line += ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    if tests is not None:
        run([*pip, "install", "--quiet", "pytest>=8", "hypothesis>=6"])
        line += f"; tests: {run_tests(env / 'bin' / 'pytest', tests)}"
    print(line, flush=True)


FACTS = """
import json, platform, importlib.util as util, importlib.metadata as metadata, y7edge
names = ("numpy", "opencv-python", "onnxruntime", "typer", "rich")
print(json.dumps(dict(
    python=platform.python_version(), file=y7edge.__file__, version=y7edge.__version__,
    stated=metadata.version("y7edge"), present=[n for n in {absent} if util.find_spec(n)],
    versions={{name: metadata.version(name) for name in names}})))
"""


def check_commands(y7edge: list[str | Path], empty: Path, expected: list[Found]) -> None:
    """Run the commands of a robot in an empty folder, and compare what they print."""
    artifact, image = empty.parents[1] / "parts.onnx", empty.parents[1] / "parts.png"
    ready = json.loads(run([*y7edge, "check", "--json"], empty))
    if not ready["ok"] or not ready["ready"]["detect"] or ready["ready"]["export"]:
        raise Failed(f"check: {ready['ready']}")
    proof = json.loads(run([*y7edge, "selftest", artifact, "--json"], empty))
    if proof["status"] != "passed" or not proof["probes"]:
        raise Failed(f"selftest: {proof}")
    info = json.loads(run([*y7edge, "info", artifact, "--json"], empty))
    if (info["form"], info["nc"], len(info["outputs"])) != ("folded", 4, 3):
        raise Failed(f"info: {info}")
    found = json.loads(run([*y7edge, "predict", artifact, image, "--json"], empty))["detections"]
    if not same(found, expected):
        raise Failed(f"predict found {found}, expected {expected}")
    if left := [path.name for path in empty.iterdir()]:
        raise Failed(f"the commands wrote {left} into the folder")


def same(found: list[Found], expected: list[Found]) -> bool:
    """Return whether two lists of detections agree: a pixel, a hundredth of the confidence."""
    if [one["class_name"] for one in found] != [one["class_name"] for one in expected]:
        return False
    for one, other in zip(found, expected, strict=True):
        edges = zip(one["xyxy"], other["xyxy"], strict=True)
        if max(abs(a - b) for a, b in edges) > 1:
            return False
        if abs(one["confidence"] - other["confidence"]) > 0.01:
            return False
    return True


def check_types(program: Path, empty: Path) -> None:
    """Check a user's script with mypy --strict against the installed package."""
    script = empty.parent / "user.py"
    script.write_text(USER)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull]
    mypy += ["--cache-dir", empty.parent / "mypy", "--python-executable", program, script]
    revealed = run(mypy, empty)
    if "numpy.ndarray" not in revealed.lower() or "float" not in revealed:
        raise Failed(f"mypy does not see the types of y7edge: {revealed}")


def run_tests(pytest: Path, tests: Path) -> str:
    """Run the tests against the installed package; return the last line of pytest."""
    command = [pytest, "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS]
    return run(command, tests).strip().splitlines()[-1].strip("= ")


if __name__ == "__main__":
    sys.exit(main())
