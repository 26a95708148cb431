"""Help whose options stand under headings, so that a long list can be read."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Grouped(TyperCommand):
    """A command that lists each option under its ``rich_help_panel``, in the order of the panels.

    typer groups them only in its coloured help, which draws boxes and cannot be piped or searched.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, a section for each heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
                title = getattr(parameter, "rich_help_panel", None) or plain
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
