"""Format help texts: group options under headings, and insert names from the registries."""

from __future__ import annotations

from typing import Any, cast

from typer.core import TyperCommand


class Grouped(TyperCommand):
    """A command whose help groups options by ``rich_help_panel``, without using rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                record = _filled(record[0]), _filled(record[1])
                plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
                title = getattr(parameter, "rich_help_panel", None) or plain
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _filled(text: str) -> str:
    """Replace placeholders: ``{devices}``, for example, by the device names of all runtimes."""
    if "{" not in text:
        return text
    from y7edge.export.calibration_files import FORMS
    from y7edge.export.graph.rewrites import REWRITES
    from y7edge.export.targets import registry as targets
    from y7edge.export.targets.base import Target
    from y7edge.runtimes import registry as runtimes

    known = [cast(Target, target) for target in targets.TARGETS.loadable()]
    lists = {
        "{devices}": ", ".join(runtimes.devices()),
        "{backends}": ", ".join(runtimes.names()),
        "{targets}": "|".join(targets.names()),
        "{forms}": "|".join(FORMS),
        "{inputs}": "|".join(dict.fromkeys(kind for t in known for kind in t.INPUTS)),
        "{rewrites}": ", ".join(REWRITES),
        "{outputs}": "|".join(dict.fromkeys(output for t in known for output in t.OUTPUTS)),
        "{profiles}": "|".join(dict.fromkeys(p for t in known for p in t.PROFILES)),
        "{precisions}": "|".join(dict.fromkeys(p for t in known for p in t.PRECISIONS)),
    }
    for name, found in lists.items():
        text = text.replace(name, found)
    return text
