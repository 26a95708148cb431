"""A class of inputs: members made by hand, mutations of valid files, and what reads them."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

SECRET = b"y7edge-secret-outside-of-the-input"


def secret_image() -> bytes:
    """A JPEG of 96 x 64 with the secret in a comment, to be found in whatever copies it."""
    stream = io.BytesIO()
    Image.new("RGB", (96, 64), (120, 90, 60)).save(stream, "JPEG")
    data = stream.getvalue()
    return data[:2] + b"\xff\xfe" + (len(SECRET) + 2).to_bytes(2, "big") + SECRET + data[2:]


@dataclass(frozen=True)
class Place:
    """Where an input is made: ``inside`` is its own folder, ``material`` has the valid files."""

    inside: Path
    material: Path
    rng: random.Random

    @property
    def outside(self) -> Path:
        """A folder beside the input's own, which nothing may touch."""
        return self.inside.parent / "outside"

    def copy(self, name: str) -> Path:
        """A valid file or folder, copied into the input's folder."""
        source, destination = self.material / name, self.inside / Path(name).name
        if source.is_dir():
            shutil.copytree(source, destination, symlinks=True)
        else:
            shutil.copyfile(source, destination)
        return destination


Make = Callable[[Place], Path]
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Attack:
    """One class of inputs.

    Attributes:
        name: Of the class, the first part of an input's id.
        weight: Its part of all inputs.
        hand: Members made by hand, by name; each writes an input and returns its path.
        mutate: Writes a changed valid input, None if there are only members made by hand.
        reads: What reads the input, by name; a typed error or a result is right.
        commands: Command lines that read it: ``{}`` is the path, ``{out}`` a new one.
    """

    name: str
    weight: int
    hand: Mapping[str, Make]
    mutate: Make | None
    reads: Mapping[str, Read]
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """One input: ``number`` counts members by hand (each with each reader) or mutations."""

    attack: Attack
    sort: str  # "hand" or "mutation"
    number: int
    command: bool = False  # read by a command line, else by a function of the package
    whole: bool = False  # that command line in a process of its own

    @property
    def id(self) -> str:
        """By which it is replayed."""
        by = "!" if self.whole else "$" if self.command else ""
        return f"{self.attack.name}{by}:{self.sort[0]}{self.number}"


@dataclass(frozen=True)
class Attempt:
    """An input that is ready: what it is in words, and the call or the command line to try."""

    words: str
    path: Path
    call: Callable[[], object] | None = None
    argv: tuple[str, ...] = ()


def prepare(one: Input, place: Place) -> Attempt:
    """Write an input into its folder."""
    attack = one.attack
    makers, ways = list(attack.hand), list(attack.commands if one.command else attack.reads)
    if one.sort == "hand":
        name = makers[one.number // len(ways) % len(makers)]
        way, make = ways[one.number % len(ways)], attack.hand[name]
    else:
        assert attack.mutate is not None
        name, way, make = "mutation", place.rng.choice(ways), attack.mutate
    path = make(place)
    if not one.command:
        return Attempt(f"{name} -> {way}", path, lambda: attack.reads[way](path))
    out = place.inside / "made" / "out"
    out.parent.mkdir(exist_ok=True)
    words = [word.format(str(path), out=str(out), material=str(place.material))
             for word in way.split(" ")]  # fmt: skip
    return Attempt(f"{name} -> y7edge {way}", path, argv=tuple(words))


@dataclass
class Verdict:
    """What came of an input. ``kind`` groups faults: outcome, error and place in the code."""

    id: str
    words: str
    outcome: str  # ok, refused, or a fault
    detail: str = ""
    where: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0
    folder: Path | None = field(default=None, repr=False)

    @property
    def is_fault(self) -> bool:
        """Whether this must not happen."""
        return self.outcome not in ("ok", "refused")

    @property
    def kind(self) -> str:
        """The same for all inputs that show the same fault."""
        return f"{self.outcome} {self.where}".strip()
