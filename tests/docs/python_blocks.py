"""Run the Python blocks of a page in one process, when the shell script of the page asks for it.

A request is a line ``FOLDER<tab>FILE<tab>PAGE<tab>LINE`` on standard input; the answer on the file
descriptor named by the first argument is ``0`` or ``1``. All blocks share their names.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import traceback
from pathlib import Path

TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def run(names: dict[str, object], file: str, page: str, line: int) -> None:
    """Run the block in ``file``; tracebacks name the line of the page."""
    text = "\n" * line + Path(file).read_text(encoding="utf-8")
    code = compile(text, page, "exec", flags=TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(code, names)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(result)


def main() -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for request in sys.stdin:
        folder, file, page, line = request.rstrip("\n").split("\t")
        os.chdir(folder)
        answer = b"0\n"
        try:
            run(names, file, page, int(line))
        except BaseException:
            traceback.print_exc()
            answer = b"1\n"
        sys.stdout.flush()
        os.write(int(sys.argv[1]), answer)


if __name__ == "__main__":
    main()
