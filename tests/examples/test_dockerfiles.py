"""The Dockerfiles of examples/deploy, without Docker: what they copy, run and start."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

from y7edge.cli.app import app

ROOT = Path(__file__).parents[2]
FILES = ("Dockerfile", "Dockerfile.l4t")
INSTRUCTIONS = {
    *("ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER"),
    *("HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"),
}


def instructions(name: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, continued lines joined."""
    text = (ROOT / "examples" / "deploy" / name).read_text()
    kept = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(kept))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def copied(name: str) -> list[str]:
    """Return what is copied from the build context."""
    lines = [arguments for instruction, arguments in instructions(name) if instruction == "COPY"]
    return [source for line in lines if "--from" not in line for source in line.split()[:-1]]


def commands(name: str, instruction: str) -> list[str]:
    return [arguments for found, arguments in instructions(name) if found == instruction]


@pytest.mark.parametrize("name", FILES)
def test_the_instructions_exist_and_end_without_root(name):
    found = instructions(name)
    assert {instruction for instruction, _ in found} <= INSTRUCTIONS
    (user,) = commands(name, "USER")
    (created,) = [line for line in commands(name, "RUN") if "useradd" in line]
    assert user in created.split() and user not in ("root", "0")
    order = [instruction for instruction, _ in found]
    assert order.index("USER") < order.index("HEALTHCHECK") < order.index("ENTRYPOINT")


@pytest.mark.parametrize("name", FILES)
def test_all_that_is_copied_is_in_the_build_context(name):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = [line[1:] for line in lines if line.startswith("!")]
    for source in copied(name):
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept)


@pytest.mark.parametrize("name", FILES)
def test_what_the_container_starts_is_a_command_of_y7edge(name):
    assert json.loads(commands(name, "ENTRYPOINT")[0]) == ["y7edge"]
    command, *arguments = json.loads(commands(name, "CMD")[-1])
    group = typer.main.get_command(app)
    context = group.commands[command].make_context(command, arguments)
    port = context.params["health"]
    assert f"127.0.0.1:{port}/health" in commands(name, "HEALTHCHECK")[0]


@pytest.mark.parametrize("name", FILES)
def test_examples_in_the_comments_are_commands_of_y7edge(name):
    text = (ROOT / "examples" / "deploy" / name).read_text().replace("\\\n#", "")
    lines = re.findall(r"docker run .* y7edge(?::l4t)? +(\w.*)", text)
    assert lines
    group = typer.main.get_command(app)
    for line in lines:
        command, *arguments = shlex.split(line)
        group.commands[command].make_context(command, arguments)


def installed(folder: Path) -> Path:
    """Run the RUN lines of the first stage in a copy of what it copies; return the environment."""
    context, env = folder / "source", folder / "y7edge"
    for source in copied("Dockerfile"):
        if (ROOT / source).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, context / source, symlinks=True, ignore=ignore)
        else:
            context.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, context / source)
    first = instructions("Dockerfile")
    stages = [i for i, (instruction, _) in enumerate(first) if instruction == "FROM"]
    for instruction, arguments in first[stages[0] : stages[1]]:
        if instruction == "RUN":
            words = shlex.split(arguments.replace("/opt/y7edge", str(env)))
            words[0] = sys.executable if words[0] == "python" else words[0]
            subprocess.run(words, cwd=context, check=True, capture_output=True, timeout=1200)
    return env


@pytest.mark.slow
def test_the_commands_without_docker(parts_model, tmp_path):
    """Install as in the image, start its command, and ask for the health as Docker does."""
    env = installed(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    start = [env / "bin" / json.loads(commands("Dockerfile", "ENTRYPOINT")[0])[0]]
    start += json.loads(commands("Dockerfile", "CMD")[-1])
    start[2], start[start.index("8081")] = parts_model, port
    check = commands("Dockerfile", "HEALTHCHECK")[0].partition("CMD ")[2].replace("8081", port)
    program, *rest = json.loads(check)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # The token of the page must not be needed for the health inside the container.
    environment = {**kept, "Y7EDGE_CACHE": str(tmp_path / "c"), "Y7EDGE_TOKEN": "abcdefgh12345678"}
    running = subprocess.Popen(
        start, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 120
        healthy = False
        while not healthy and time.monotonic() < deadline and running.poll() is None:
            done = subprocess.run([env / "bin" / program, *rest], capture_output=True, timeout=60)
            healthy = done.returncode == 0
            time.sleep(0.5)
        assert healthy, done.stderr
        running.terminate()
        running.communicate(timeout=60)
        assert running.returncode == 130
    finally:
        running.kill()
        running.communicate()
