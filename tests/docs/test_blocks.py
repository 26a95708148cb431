"""The tests of the documentation find commands and marks, and report the command that fails."""

from __future__ import annotations

import pytest

from tests.docs import blocks
from tests.docs.blocks import EXAMPLES_TEST
from tests.docs.test_commands import run_page

PAGE = r"""
# A page

```sh
# a comment
echo one \
    two   # with a comment
cat > note <<'END'
  # not a comment
END
for name in a b; do
    echo $name
done
y7edge live a.onnx 0   # not run: needs a camera
```

1. In a list:

   ```console
   $ test -s note && echo here
   here
   $ sh -c 'echo "error: no"; exit 4'
   error: no
   ```

```python
value = 1
```

```python
# not run: needs a GPU
value = gpu()
```

```sh
# not run: installs packages
sudo apt install x
pip install x
```

```sh
sh -c "exit 3"   # exits with 3
```

```python
import asyncio
assert await asyncio.sleep(0, value) == 1
```
"""


@pytest.fixture
def page(monkeypatch):
    def set_text(text):
        monkeypatch.setattr(blocks, "read", lambda page: text)
        return "docs/page.md"

    return set_text


def test_commands_and_their_marks(page):
    found = blocks.commands(page(PAGE))
    assert [(one.line, one.text.splitlines()[0], one.reason) for one in found] == [
        (6, "echo one \\", ""),
        (8, "cat > note <<'END'", ""),
        (11, "for name in a b; do", ""),
        (14, "y7edge live a.onnx 0   # not run: needs a camera", "needs a camera"),
        (20, "test -s note && echo here", ""),
        (22, "sh -c 'echo \"error: no\"; exit 4'", ""),
        (26, "value = 1", ""),
        (30, "# not run: needs a GPU", "needs a GPU"),
        (37, "sudo apt install x", "installs packages"),
        (38, "pip install x", "installs packages"),
        (42, 'sh -c "exit 3"   # exits with 3', ""),
        (45, "import asyncio", ""),
    ]
    assert [one.exit_code for one in found] == [0] * 5 + [None] + [0] * 4 + [3, 0]
    assert found[5].error == "error: no"
    assert blocks.count(page(PAGE)) == {"run": 8, "not run": 4, "elsewhere": 0}


def test_arguments_in_pipes_loops_and_after_redirections():
    text = "for f in *; do A=1 y7edge info $f --json 2>/dev/null | python3 -m y7edge val; done"
    assert blocks.y7edge_arguments(text) == [["info", "$f", "--json"], ["val"]]
    assert blocks.scripts("time python examples/a.py --b 'c d' > e") == [
        ("examples/a.py", ["--b", "c d"])
    ]


def test_examples_of_help_texts_are_commands(page):
    help_text = "Usage: y7edge info\n\n  Example:\n    y7edge info a.onnx"
    (found,) = blocks.commands(page(f"```text\n{help_text}\n```\n"))
    assert (found.line, found.text, found.elsewhere) == (5, "y7edge info a.onnx", EXAMPLES_TEST)


@pytest.mark.parametrize("text", ["```sh\ny7edge info\n", "```sh\necho 'a\n```\n"])
def test_what_does_not_end_is_an_error(page, text):
    with pytest.raises(ValueError, match=r"docs/page.md:[12]: the \w+ has no end"):
        blocks.commands(page(text))


def test_a_page_runs_as_one_script(page, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    run_page(page(PAGE), folder, tmp_path / "work")
    assert (folder / "note").read_text() == "  # not a comment\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```sh\ntrue\nfalse   # why\necho never\n```\n", ["docs/page.md:3: false", "1"]),
        ("```sh\nfalse | cat\n```\n", ["docs/page.md:2: false | cat"]),
        ("```sh\nfalse && true\necho never\n```\n", ["docs/page.md:2: false && true", "1"]),
        ("```sh\nexit\necho never\n```\n", ["docs/page.md:2: exit"]),
        ("```sh\ntrue   # exits with 4\n```\n", ["docs/page.md:2: true"]),
        (
            "```console\n$ echo error: b; false\nerror: a\n```\n",
            ["docs/page.md:2: echo", "error: b"],
        ),
        ("```sh\npip install x\n```\n", ["tests do not install packages"]),
        (
            "```python\n\nmissing\n```\n",
            ["docs/page.md:1", 'File "docs/page.md", line 3', "NameError"],
        ),
    ],
)
def test_the_command_that_fails_is_reported(page, tmp_path, text, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(pytest.fail.Exception) as failure:
        run_page(page(text), folder, tmp_path / "work")
    assert all(one in str(failure.value) for one in words), str(failure.value)
    assert "never" not in str(failure.value)
