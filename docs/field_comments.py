"""Show the comments of fields in the reference: a Griffe extension for ``zensical.toml``.

A field of a class is described by ``Attributes:`` in the docstring of the class, or by a comment in
its line. This adds those comments to ``Attributes:``.
"""

from __future__ import annotations

import io
import tokenize
from typing import Any

from griffe import Attribute, Class, Docstring, DocstringSectionKind, Extension


def comment_of(field: Attribute) -> str:
    """Return the comment at the end of a field's lines, or an empty string."""
    start, end = field.lineno or 0, field.endlineno or 0
    lines = field.lines_collection[field.filepath][start - 1 : end]
    tokens = tokenize.generate_tokens(io.StringIO("\n".join([*lines, ""])).readline)
    try:
        found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    except (tokenize.TokenError, IndentationError):  # lines of a method
        return ""
    return " ".join(one.lstrip("# ") for one in found if not one.startswith("# type:"))


class FieldComments(Extension):
    """Add comments of fields to the docstrings of classes."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Add the fields of ``cls`` that have comments, and are not described yet."""
        if cls.docstring is None:
            return
        kinds = (DocstringSectionKind.attributes, DocstringSectionKind.parameters)
        sections = cls.docstring.parse("google", warnings=False)
        described = {item.name for one in sections if one.kind in kinds for item in one.value}
        fields = [
            f"    {name}: {comment}"
            for name, field in cls.attributes.items()
            if not field.is_alias and name not in described and field.docstring is None
            if "property" not in field.labels and (comment := comment_of(field))
        ]
        if not fields:
            return
        text, heading = cls.docstring.value, "Attributes:"
        if heading not in text.splitlines():
            text += f"\n\n{heading}"
        head, _, rest = text.partition(f"{heading}")
        value = f"{head}{heading}\n" + "\n".join(fields) + (rest if rest.strip() else "")
        old = cls.docstring
        cls.docstring = Docstring(
            value,
            lineno=old.lineno,
            endlineno=old.endlineno,
            parent=cls,
            parser=old.parser,
            parser_options=old.parser_options,
        )
