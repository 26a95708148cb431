"""Format help texts: sections, metavars, ranges, and names from the registries.

The texts are plain, without rich, and equal with all supported versions of typer.
"""

from __future__ import annotations

import re
from typing import Any, cast

from typer.core import TyperCommand, TyperGroup

# How versions of typer write the types of options without a metavar, and what we write.
_TYPES = (
    (r"<int[^>]*>|INTEGER( RANGE)?", "N"),
    (r"<float[^>]*>|FLOAT( RANGE)?", "X"),
    (r"<path>|\bPATH\b", "PATH"),
    (r"<str>|\bTEXT\b", "TEXT"),
    (r"[<\[]([\w-]+(?:\|[\w-]+)+)[>\]]", r"\1"),  # choices
)
# Remarks at the end of a help text. Some versions of typer escape the bracket for rich.
_REMARKS = re.compile(r"  \\?\[([^\[\]]*)\]$")
_NUMBER = r"(-?[\d.]+)"
_RANGES = ((rf"{_NUMBER}<=x<={_NUMBER}", r"\1 to \2"), (rf"x>={_NUMBER}", r"at least \1"))


class Grouped(TyperCommand):
    """A command whose help groups options by ``rich_help_panel``, without using rich."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the usage: ``[OPTIONS] MODEL SOURCE...``."""
        return ["[OPTIONS]", *(_usage(one) for one in self.get_params(ctx) if _is_argument(one))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per heading."""
        for title, records in sections(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)


class Sections(TyperGroup):
    """A group whose help lists commands by ``rich_help_panel``, those of groups in full."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options that precede a command."""
        self.format_commands(ctx, formatter)
        for title, records in sections(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per heading."""
        listed: dict[str, list[tuple[str, str]]] = {}
        for name, command in commands(self, ctx):
            listed.setdefault(_panel(command) or "Commands", []).append((name, summary(command)))
        width = max(len(name) for rows in listed.values() for name, _ in rows)
        for title, rows in listed.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


def commands(group: Any, ctx: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the commands of a group by name, such as ``train`` and ``data check``, in order."""
    inner: list[tuple[str, Any]] = []  # those of groups are listed first
    plain: list[tuple[str, Any]] = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if hasattr(command, "list_commands"):
            inner += commands(command, ctx, f"{name} ")
        else:
            plain.append((f"{prefix}{name}", command))
    return [*inner, *plain]


def summary(command: Any) -> str:
    """Return the first line of a command's help."""
    return str(command.help).partition("\n")[0]


def sections(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the rows of a command's help by heading: names with metavars, and help texts."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            plain = "Arguments" if _is_argument(parameter) else "Options"
            title = getattr(parameter, "rich_help_panel", None) or plain
            names = _argument(parameter) if _is_argument(parameter) else _typed(record[0])
            found.setdefault(title, []).append((_filled(names), _filled(_remarked(record[1]))))
    return found


def _is_argument(parameter: Any) -> bool:
    return str(parameter.param_type_name) == "argument"


def _panel(command: Any) -> str | None:
    return getattr(command, "rich_help_panel", None)


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _usage(parameter: Any) -> str:
    name = _argument(parameter) + ("..." if parameter.nargs != 1 else "")
    return name if parameter.required else f"[{name}]"


def _typed(names: str) -> str:
    """Replace the types of typer in ``--batch <int range>``."""
    for pattern, metavar in _TYPES:
        names = re.sub(pattern, metavar, names)
    return names


def _remarked(text: str) -> str:
    """Write the range of ``[default: 16; x>=1]`` in words."""
    match = _REMARKS.search(text)
    if match is None:
        return text
    remarks = match[1]
    for pattern, words in _RANGES:
        remarks = re.sub(pattern, words, remarks)
    return f"{text[: match.start()]}  [{remarks}]"


def _filled(text: str) -> str:
    """Replace placeholders: ``{devices}``, for example, by the device names of all runtimes."""
    for name in re.findall(r"\{([a-z]+)\}", text):
        text = text.replace(f"{{{name}}}", ", ".join(values(name)))
    return text


def values(name: str) -> list[str]:
    """Return the values of options that the registries know, such as those of ``targets``."""
    if name == "variants":
        from y7edge.models import names

        return names()
    if name == "forms":
        from y7edge.export.calibration_files import FORMS

        return list(FORMS)
    if name == "rewrites":
        from y7edge.export.graph.rewrites import REWRITES

        return list(REWRITES)
    if name in ("backends", "devices"):
        from y7edge.runtimes import registry as runtimes

        return runtimes.names() if name == "backends" else runtimes.devices()
    from y7edge.export.targets import registry as targets
    from y7edge.export.targets.base import Target

    if name == "targets":
        return targets.names()
    # Tables of targets. Those of onnx come first, because it is the default of most commands.
    known = [targets.get("onnx"), *(cast(Target, t) for t in targets.TARGETS.loadable())]
    member = {"inputs": "INPUTS", "outputs": "OUTPUTS", "profiles": "PROFILES"}
    tables = [getattr(target, member.get(name, "PRECISIONS")) for target in known]
    return list(dict.fromkeys(value for table in tables for value in table))
