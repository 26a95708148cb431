"""Records of the attack: a class of inputs has hand-made members, mutations and readers."""

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
    """Return a 96 x 64 JPEG with a secret in a comment, to detect output that copies the file."""
    stream = io.BytesIO()
    Image.new("RGB", (96, 64), (120, 90, 60)).save(stream, "JPEG")
    data = stream.getvalue()
    return data[:2] + b"\xff\xfe" + (len(SECRET) + 2).to_bytes(2, "big") + SECRET + data[2:]


@dataclass(frozen=True)
class Place:
    """Folders of an input: ``inside`` is its own, ``material`` contains the valid files."""

    inside: Path
    material: Path
    rng: random.Random

    @property
    def outside(self) -> Path:
        """A folder beside the input's own folder, which must not be changed."""
        return self.inside.parent / "outside"

    def copy(self, name: str) -> Path:
        """Copy a valid file or folder into the input's folder."""
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
        name: The name of the class, which begins the ids of its inputs.
        weight: Relative number of its inputs.
        hand: Hand-made members by name; each writes an input and returns its path.
        mutate: Writes a mutated valid input; None if there are only hand-made members.
        reads: Readers by name; each must return a result or raise a typed error.
        commands: Command lines that read it: ``{}`` is the path, ``{out}`` a new path.
    """

    name: str
    weight: int
    hand: Mapping[str, Make]
    mutate: Make | None
    reads: Mapping[str, Read]
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """One input; ``number`` counts hand-made members (for each reader) or mutations."""

    attack: Attack
    sort: str  # "hand" or "mutation"
    number: int
    command: bool = False  # read by a command line instead of a function
    whole: bool = False  # run the command line in its own process

    @property
    def id(self) -> str:
        """The id to replay the input."""
        by = "!" if self.whole else "$" if self.command else ""
        return f"{self.attack.name}{by}:{self.sort[0]}{self.number}"


@dataclass(frozen=True)
class Attempt:
    """A written input: its description, and the call or command line to try."""

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
    words = [
        word.format(str(path), out=str(out), material=str(place.material))
        for word in way.split(" ")
    ]
    return Attempt(f"{name} -> y7edge {way}", path, argv=tuple(words))


@dataclass
class Verdict:
    """Result of an input."""

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
        """Whether the outcome is a fault."""
        return self.outcome not in ("ok", "refused")

    @property
    def kind(self) -> str:
        """Outcome, error and code location; equal for inputs with the same fault."""
        return f"{self.outcome} {self.where}".strip()
