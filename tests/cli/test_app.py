"""The application: exit codes, one-line errors, and help texts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from y7edge import __version__, errors
from y7edge.cli import app as app_module
from y7edge.cli import main
from y7edge.cli.app import COMMANDS


def _raiser(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("imgsz is 33"), 1),
        (errors.RuntimeMissing("needs an engine"), 3),
        (errors.ParityError("differs"), 4),
        (errors.DigestError("was changed"), 4),
        (errors.GateError("too slow"), 4),
        (KeyboardInterrupt(), 130),
        (ValueError("a mistake of ours"), 1),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 3),
        (ImportError("libGL.so.1: cannot open shared object file"), 3),
        (OSError(28, "the other words of a driver"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_one_line_and_a_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("y7edge.environment.check", _raiser(error))
    assert main(["check"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    shown = str(error).replace("No module named ", "").replace("[Errno 28] ", "").strip("'")
    assert shown in printed.err
    assert ("internal error" in printed.err) == (type(error) is ValueError)


def test_a_request_to_stop_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("y7edge.environment.check", lambda: signal.raise_signal(signal.SIGTERM))
    try:
        assert main(["check"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_while_modules_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Importing:
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "y7edge.cli.app", Importing())
    assert main(["check"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_message_of_several_lines_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "y7edge.environment.check", _raiser(errors.DeviceError("the engine:\n  no\n"))
    )
    main(["check"])
    assert capsys.readouterr().err == "error: the engine: no\n"


@pytest.mark.parametrize("line", [["--traceback", "check"], ["check", "--traceback"]])
def test_traceback_shows_the_rest(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("y7edge.environment.check", _raiser(errors.ConfigError("x")))
    assert main(line) == 1
    error = capsys.readouterr().err
    assert "raise_it" in error
    assert error.endswith("error: x\n")


def test_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ModuleNotFoundError("No module named 'matplotlib.figure'", name="matplotlib.figure")
    monkeypatch.setattr("y7edge.environment.check", _raiser(missing))
    assert main(["check"]) == 3
    assert "pip install 'y7edge[train]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["info", "--zzz"], "No such option: --zzz. See `y7edge info --help`"),
        (["train"], "Missing option '--data'"),
        (["export", "yolov7", "--imgsz", "64x"], "height x width as 384x640, not '64x'"),
        (["train", "--data", "d", "--epochs", "0"], "--epochs"),
    ],
)
def test_wrong_usage(line: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2
    printed = capsys.readouterr()
    assert part in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "selftest" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"y7edge {__version__}\n"


@pytest.mark.parametrize(
    ("command", "example"), COMMANDS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_every_command_has_help_and_example(
    command: Callable[..., None], example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command.__name__, "--help"]) == 0
    text = capsys.readouterr().out
    assert example in text
    assert example.startswith(f"y7edge {command.__name__}")
    assert "--json" in text


@pytest.mark.parametrize("example", COMMANDS.values())
def test_examples_name_options_that_exist(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, *words = example.split()
    main([command, "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in words if word.startswith("--"))


def test_a_missing_value_names_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "model.onnx", "image.jpg", "--save"]) == 2
    assert "See `y7edge predict --help`" in capsys.readouterr().err


def test_a_signal_while_an_engine_is_imported(monkeypatch, capsys):
    """The engine, which is an extension module, raises ImportError from KeyboardInterrupt."""

    def fail(*_, **__):
        imported = ImportError("initialization failed")
        imported.__cause__ = KeyboardInterrupt()
        raise errors.RuntimeMissing("cannot be imported") from imported

    monkeypatch.setattr(app_module, "app", fail)
    assert main(["check"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
