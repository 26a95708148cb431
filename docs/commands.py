"""Write the reference of the commands in docs/cli.md from the application's help texts.

python docs/commands.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from y7edge.cli.app import app
from y7edge.cli.grouped import commands, summary
from y7edge.files import write_text

PAGE = Path(__file__).parent / "cli.md"
START = "<!-- From here on, python docs/commands.py writes this page. -->\n"
WIDTH = 78  # that of help texts on a terminal of 80 columns


def reference() -> str:
    """Return a table of all commands, and the help text of each."""
    group: Any = typer.main.get_command(app)
    top = group.context_class(group, info_name="y7edge", **group.context_settings)
    found: dict[str, list[tuple[str, Any]]] = {}
    for name, command in commands(group, top):
        found.setdefault(command.rich_help_panel, []).append((name, command))
    lines = ["| command | |", "|---|---|"]
    for rows in found.values():
        for name, command in rows:
            anchor = f"y7edge-{name.replace(' ', '-')}"
            lines.append(f"| [`{name}`](#{anchor}) | {summary(command)} |")
    for title, rows in found.items():
        lines += ["", f"## {title}"]
        for name, command in rows:
            context = command.context_class(
                command, info_name=name, parent=top, terminal_width=WIDTH
            )
            help_text = command.get_help(context)
            lines += ["", f"### y7edge {name}", "", "```text", *help_text.splitlines(), "```"]
    return "\n".join([*lines, ""])


def page() -> str:
    """Return docs/cli.md with the reference of the present application."""
    before, start, _ = PAGE.read_text(encoding="utf-8").partition(START)
    return f"{before}{start or START}\n{reference()}"


if __name__ == "__main__":
    write_text(PAGE, page())
