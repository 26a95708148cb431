"""Attack all readers with hostile and damaged inputs, each in its own process.

    python tests/attack/run.py                     all classes, about ten minutes on two cores
    python tests/attack/run.py --only coco         one class (repeat for more)
    python tests/attack/run.py --count 500         fewer inputs
    python tests/attack/run.py --replay coco:m17   one input again; its folder is kept

A reader must return a result or raise a typed one-line error. Faults are: other exceptions, a
process killed by a signal, more than ten seconds or 2 GB, executed code, files written or copied
outside the input's folder, and undocumented exit codes or output of a command line. Equal seeds
give equal inputs. Exits with 1 if there is a fault.
"""

# The environment must be set before the imports.
# ruff: noqa: E402

from __future__ import annotations

import os

# Before numpy, OpenCV and torch are imported: no threads in a process that forks.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import argparse
import gc
import importlib
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.dont_write_bytecode = True

from tests.attack.base import Attack, Input, Verdict, prepare
from tests.attack.harness import SECONDS, Maker, run_all

COUNT, QUICK = 5600, 150
COMMANDS = 0.045  # fraction of all inputs: 250, a tenth of them in their own process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the attack; return 1 if there is a fault."""
    options = _parse(argv)
    from tests.attack import classes, planted

    if unknown := set(options.only) - {a.name for a in classes.ALL}:
        known = ", ".join(a.name for a in classes.ALL)
        sys.exit(f"no class {', '.join(unknown)}; there are {known}")
    chosen = [a for a in classes.ALL if not options.only or a.name in options.only]
    maker = planted.prepare if options.planted else prepare
    if options.planted:
        inputs = planted.inputs()
    elif options.replay:
        inputs = [find(options.replay, classes.ALL)]
    else:
        inputs = choose(chosen, QUICK if options.quick else options.count, options.seed)
    warm()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Some files contain paths. Paths of equal length and letters only keep inputs reproducible.
    name = "".join(chr(ord("a") + int(digit)) for digit in f"{os.getpid():010}")
    folder = Path(tempfile.gettempdir(), f"attack-{name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        verdicts = _attack(inputs, folder, options, maker)
    finally:
        if not options.replay:
            shutil.rmtree(folder, ignore_errors=True)
    show(verdicts, time.monotonic() - began, options.seed)
    if options.replay:
        print(f"folder: {verdicts[0].folder}")
    return int(any(v.is_fault for v in verdicts))


def _attack(
    inputs: Sequence[Input], folder: Path, options: argparse.Namespace, maker: Maker
) -> list[Verdict]:
    """Try the inputs and print the progress."""
    from tests.attack import material

    valid, verdicts = folder / "material", list[Verdict]()
    valid.mkdir()
    if not options.planted:
        material.forked(material.make_all, valid)
    tried = run_all(
        inputs,
        seed=options.seed,
        material=valid,
        folder=folder / "inputs",
        jobs=options.jobs,
        keep=bool(options.replay),
        seconds=4.0 if options.planted else SECONDS,
        maker=maker,
    )
    for verdict in tried:
        verdicts.append(verdict)
        if options.list or options.planted:
            print(f"{verdict.id}: {verdict.words}: {verdict.outcome}: {verdict.detail[:300]!a}")
        if sys.stderr.isatty() or len(verdicts) % 250 == 0:
            faults = sum(v.is_fault for v in verdicts)
            line = f"{len(verdicts)} of {len(inputs)} inputs, {faults} faults, {verdict.id}"
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{line:<78}", end=end, file=sys.stderr, flush=True)
    return verdicts


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs")
    parser.add_argument("--count", type=int, default=COUNT, help="how many inputs (%(default)s)")
    parser.add_argument("--only", action="append", default=[], metavar="CLASS")
    parser.add_argument("--replay", metavar="ID", help="one input, by the id that was printed")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} inputs of all classes")
    parser.add_argument("--planted", action="store_true", help="only faults made on purpose")
    parser.add_argument("--list", action="store_true", help="print every verdict")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (%(default)s)")
    return parser.parse_args(argv)


def warm() -> None:
    """Import all modules before forking."""
    import cv2
    import torch

    import y7edge

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(y7edge.__path__, "y7edge."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        *("onnx", "onnxsim", "onnxruntime", "yaml", "matplotlib.figure", "safetensors.numpy"),
        *("matplotlib.backends.backend_agg", "PIL.Image", "PIL.ImageOps", "rich.table", "openvino"),
        *("lightning_fabric", "faster_coco_eval", "torch.utils.tensorboard"),
    ):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def choose(attacks: Sequence[Attack], count: int, seed: int) -> list[Input]:
    """Return inputs of all classes by their weights, hand-made members first."""
    total = sum(attack.weight for attack in attacks)
    chosen: list[Input] = []
    for attack in attacks:
        mine = max(2, round(count * attack.weight / total))
        if attack.commands:
            part = attack.weight / sum(a.weight for a in attacks if a.commands)
            lines = max(1, round(count * COMMANDS * part)) if attack.reads else mine
            chosen += _of(attack, lines, seed, command=True)
            mine -= lines
        if attack.reads:
            chosen += _of(attack, mine, seed)
    return chosen


def _of(attack: Attack, count: int, seed: int, *, command: bool = False) -> list[Input]:
    ways = len(attack.commands if command else attack.reads)
    hand = list(range(len(attack.hand) * ways))
    random.Random(f"{seed}:{attack.name}").shuffle(hand)
    most = count if attack.mutate is None else max(1, round(count * 0.6))
    members = [("hand", number) for number in hand[:most]]
    rest = count - len(members)
    if attack.mutate is not None:
        members += [("mutation", number) for number in range(rest)]
    else:
        members += [("hand", len(hand) + number) for number in range(rest)]  # other seeds
    return [
        Input(attack, sort, number, command, whole=command and index % 8 == 3)
        for index, (sort, number) in enumerate(members)
    ]


def find(text: str, attacks: Sequence[Attack]) -> Input:
    """Return the input with an id."""
    name, _, rest = text.partition(":")
    attack = next((a for a in attacks if a.name == name.rstrip("!$")), None)
    sorts = {"h": "hand", "m": "mutation"}
    if attack is None or rest[:1] not in sorts or not rest[1:].isdigit():
        sys.exit(f"{text} is not the id of an input, such as coco:m17")
    command, whole = name.endswith(("!", "$")), name.endswith("!")
    return Input(attack, sorts[rest[0]], int(rest[1:]), command, whole)


def show(verdicts: Sequence[Verdict], seconds: float, seed: int) -> None:
    """Print a table of classes and the faults by kind."""
    print(
        f"\n{'class':<14}{'tried':>7}{'ok':>7}{'refused':>9}{'faults':>8}{'slowest':>9}{'mean':>7}{'MB':>7}"
    )
    for name in dict.fromkeys(v.id.partition(":")[0].rstrip("!$") for v in verdicts):
        mine = [v for v in verdicts if v.id.partition(":")[0].rstrip("!$") == name]
        _row(name, mine)
    _row("command lines", [v for v in verdicts if set("!$") & set(v.id)])
    _row("all", verdicts)
    print(f"{seconds:.0f} s, seed {seed}")
    faults = [v for v in verdicts if v.is_fault]
    for kind, count in Counter(v.kind for v in faults).most_common():
        first = next(v for v in faults if v.kind == kind)
        ids = [v.id for v in faults if v.kind == kind][:4]
        print(f"\n{count} x {kind}\n    {', '.join(ids)}: {first.words}\n    {first.detail!a}")


def _row(name: str, verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        return
    counts = Counter(v.outcome if not v.is_fault else "faults" for v in verdicts)
    slowest, most = max(v.seconds for v in verdicts), max(v.megabytes for v in verdicts)
    mean = sum(v.seconds for v in verdicts) / len(verdicts)
    print(
        f"{name:<14}{len(verdicts):>7}{counts['ok']:>7}{counts['refused']:>9}"
        f"{counts['faults']:>8}{slowest:>8.1f}s{mean:>6.2f}s{most:>7.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
