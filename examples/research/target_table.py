"""Write a table of all targets: how far the artifacts of each were proved, with mAP and latency.

    y7edge export tiny.safetensors --target all-here --data data.yaml --json > tiny.json
    python examples/research/target_table.py "yolov7-tiny, 320 px=tiny.json"
    python examples/research/target_table.py "yolov7-tiny, 320 px=tiny.json" --write docs/support.md

The arguments are titles, and files with the output of `y7edge export --target all-here --json`.
With ``--write``, the tables replace the lines between the two comments ``targets`` in a Markdown
file.

* run: the artifact ran in its own engine; the proof compared it with the unfolded model;
* emulated: it ran in the vendor's emulator or simulator on a PC;
* handed over: the model in the folder ran on the CPU; the vendor's converter did not run;
* not run: the file was built, and nothing on the machine runs it;
* not made: the reason is below the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from y7edge.errors import ConfigError, Y7EdgeError
from y7edge.files import write_text

HEAD = ("target", "precision", "state", "parity", "mAP (drop)", "ms", "MB", "s", "computed in")


def table(title: str, artifacts: list[dict[str, Any]]) -> list[str]:
    """Return a heading and the table of one run of all-here."""
    lines = [f"**{title}**", "", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    reasons: dict[str, list[str]] = {}
    for one in artifacts:
        accuracy = "" if one["map50_95"] is None else f"{one['map50_95']:.4f} ({one['drop']:.4f})"
        numbers = ["" if one[name] is None else str(one[name]) for name in ("ms", "megabytes")]
        cells = (one["target"], one["precision"], one["state"], one["parity"], accuracy, *numbers)
        seconds = "" if one["seconds"] is None else f"{one['seconds']:.0f}"
        lines.append(f"| {' | '.join((*cells, seconds, one['where']))} |")
        if one["problem"]:
            reasons.setdefault(one["problem"], []).append(f"{one['target']} {one['precision']}")
    lines.append("")
    lines += [f"- {', '.join(which)}: {problem}" for problem, which in reasons.items()]
    return [*lines, ""] if reasons else lines


def replaced(text: str, tables: str, place: Path, name: str = "targets") -> str:
    """Return a page with other tables between its comments.

    Raises:
        ConfigError: the page does not have the two comments.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ConfigError(f"{place} does not have the lines {begin} and {end}, once each")
    return f"{text[: text.index(begin)]}{begin}\n\n{tables}\n{text[text.index(end) :]}"


def main() -> int:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    options = parser.parse_args()
    try:
        lines = []
        for run in options.runs:
            title, _, name = run.rpartition("=")
            if not title:
                raise ConfigError(f"{run!r} is not TITLE=FILE")
            lines += table(title, json.loads(Path(name).read_text("utf-8"))["artifacts"])
        tables = "\n".join(lines)
        if options.write is None:
            print(tables)
        else:
            page = options.write.read_text("utf-8")
            write_text(options.write, replaced(page, tables, options.write))
    except (Y7EdgeError, OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
