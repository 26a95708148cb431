"""What a program has that runs for months: health, reloads, and states for systemd."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from y7edge.detect.health import Health, SourceHealth
from y7edge.errors import ConfigError, DigestError
from y7edge.live import operation
from y7edge.live.access import Address, Guard
from y7edge.live.notify import Notifier
from y7edge.live.operation import Operation
from y7edge.live.reload import Reloader

WAIT = 30
TOKEN = "0123456789abcdef"


def _wait(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- systemd --------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket as that of systemd, and the environment that it gives to a service."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@y7edge-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        listener.settimeout(WAIT)
        yield SimpleNamespace(
            next=lambda: listener.recv(4096).decode(),
            environment={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "6000000"},
        )


def test_states_for_systemd(manager):
    notifier = Notifier(manager.environment)
    assert (notifier.is_used, notifier.watchdog) == (True, 6.0)
    notifier.reloading()  # before the start has ended, these would end it
    notifier.reloaded()
    notifier.ready()
    notifier.ready()
    notifier.alive()
    notifier.status("all\nis \x1bwell")
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.reloaded()
    notifier.stopping()
    assert [manager.next() for _ in range(3)] == [
        "READY=1",
        "WATCHDOG=1",
        "STATUS=all is \\x1bwell",
    ]
    state, usec = manager.next().split("\n")
    assert state == "RELOADING=1"
    assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert [manager.next() for _ in range(2)] == ["READY=1", "STOPPING=1"]
    notifier.close()
    notifier.alive()  # nothing happens


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "@"}, {"NOTIFY_SOCKET": "relative"}],
)
def test_without_systemd(environment):
    notifier = Notifier(environment)
    notifier.ready()
    assert not notifier.is_used


def test_a_watchdog_of_another_process_is_not_ours(manager):
    environment = {**manager.environment, "WATCHDOG_PID": "1"}
    assert Notifier(environment).watchdog is None


def test_a_manager_that_is_gone(tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notifier.ready()
    notifier.alive()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "gone"))
        listener.settimeout(WAIT)
        notifier.ready()  # again, because nobody has received it
        assert listener.recv(100) == b"READY=1"


# --- reload ---------------------------------------------------------------------------------------


def test_reloads_and_their_outcomes(caplog):
    calls, go = [], threading.Semaphore(0)
    reloader = Reloader(lambda: calls.append("before"), lambda: calls.append("after"))
    results = iter([None, DigestError("damaged"), OSError("no")])

    def reload():
        assert go.acquire(timeout=WAIT)
        error = next(results)
        calls.append("reload")
        if error:
            raise error

    assert reloader.outcome.state == "none"
    reloader.request()  # before the start
    reloader.start(reload)
    _wait(lambda: reloader.outcome.state == "running")
    go.release()
    _wait(lambda: calls == ["before", "reload", "after"])
    assert reloader.outcome.state == "done"
    with caplog.at_level(logging.ERROR, "y7edge"):
        for number, message in ((2, "damaged"), (3, "OSError('no')")):
            reloader.request(10, None)  # as a signal handler
            go.release()
            _wait(lambda number=number: calls.count("after") == number)
            assert (reloader.outcome.state, reloader.outcome.message) == ("failed", message)
    assert [record.getMessage() for record in caplog.records] == [
        "the model was not replaced, and the old one stays in use: damaged",
        "the model was not replaced, and the old one stays in use: OSError('no')",
    ]
    reloader.stop()


def test_requests_that_wait_are_one():
    calls, running, go = [], threading.Event(), threading.Event()

    def reload():
        running.set()
        assert go.wait(WAIT)
        calls.append(1)

    reloader = Reloader()
    reloader.start(reload)
    reloader.request()
    assert running.wait(WAIT)
    for _ in range(5):
        reloader.request()
    go.set()
    _wait(lambda: len(calls) == 2)
    reloader.stop()
    time.sleep(0.05)
    assert len(calls) == 2


# --- health ---------------------------------------------------------------------------------------


@pytest.fixture
def ask():
    """Return a function that asks a server of a report, and returns code and body."""
    pytest.importorskip("aiohttp")
    from y7edge.live.health_server import HealthServer

    with ExitStack() as stack:

        def start(report, token=None, address="127.0.0.1:0"):
            place = Address.parse(address, "--health")
            guard = Guard(place, token, required=False)
            server = stack.enter_context(HealthServer(place.listen(), guard, lambda: report))
            port = server.url.rsplit(":", 1)[1]

            def get(path=f"http://127.0.0.1:{port}", **headers):
                request = urllib.request.Request(path, headers=headers)
                try:
                    with urllib.request.urlopen(request, timeout=WAIT) as answer:
                        return answer.status, json.load(answer)
                except urllib.error.HTTPError as error:
                    return error.code, error.read().decode()

            return get

        yield start


def test_codes_and_details(ask):
    report = {"status": "ok", "sources": [{"name": "cam"}]}
    get = ask(report)
    assert get() == (200, report)
    for status in ("failing", "starting"):
        report["status"] = status
        code, body = get()
        assert (code, json.loads(body)) == (503, report)
    assert get(Host="evil.example")[0] == 403


def test_details_need_the_token(ask):
    report = {"status": "ok", "sources": [{"name": "cam"}]}
    get = ask(report, TOKEN)
    assert get() == (200, {"status": "ok"})
    assert get(Authorization=f"Bearer {TOKEN}") == (200, report)
    assert get(Authorization=f"bearer {TOKEN}") == (200, report)
    for wrong in (f"Bearer {TOKEN}x", TOKEN, "Bearer ", f"Basic {TOKEN}"):
        assert get(Authorization=wrong) == (200, {"status": "ok"})


def test_other_machines_get_the_status_only(ask):
    get = ask({"status": "ok", "sources": [{"name": "cam"}]}, address="0.0.0.0:0")
    assert get() == (200, {"status": "ok"})


def test_messages_name_the_option():
    with pytest.raises(ConfigError, match="--health is 'x:y'"):
        Address.parse("x:y", "--health")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(Exception, match=f"--health 127.0.0.1:{port}: cannot listen"):
            Address.parse(str(port), "--health").listen()


class Watched:
    """A stream whose health the test sets, and a manager that notes what it gets."""

    def __init__(self, monkeypatch):
        self.names, self.sent, self.now = ("cam",), [], 1000.0
        self.watchdog, self.is_used = None, True
        self.source = SourceHealth(
            "cam", "running", None, None, 9.0, None, 0, 0, 0, 0, {"count": 0}
        )
        self.status, self.faults = "starting", ("cam: no result yet",)
        fake = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(operation, "time", fake)

    def health(self, silence):
        model = {"name": "parts", "model_id": "abcd"}
        return Health(self.status, self.faults, model, (self.source,))

    def set(self, status, *faults, **changes):
        self.status, self.faults = status, faults
        self.source = SourceHealth(**{**vars(self.source), **changes})

    def ready(self):
        self.sent.append("ready")

    def alive(self):
        self.sent.append("alive")

    def status_text(self, text):
        self.sent.append(text)

    def tick(self, watching, seconds=1.0):
        self.now += seconds
        self.sent.clear()
        watching.tick()
        return list(self.sent)


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def _operation(watched, reloader=None):
    notifier = SimpleNamespace(
        watchdog=None,
        is_used=True,
        ready=watched.ready,
        alive=watched.alive,
        status=watched.status_text,
    )
    return Operation(watched, 10.0, reloader or Reloader(), notifier, lambda: {"problems": []})


def test_signs_of_life_come_only_with_results(watched, caplog):
    watching = _operation(watched)
    text = "starting; cam: no result yet; parts (abcd); cam: 9.0/s"
    assert watched.tick(watching) == [text]
    assert watched.tick(watching, 0.1) == []
    watched.set("ok", results=5, seconds=0.1)
    assert watched.tick(watching) == ["ready", "alive"]
    with caplog.at_level(logging.INFO, "y7edge"):
        watched.set("failing", "cam: no result for 11 s", seconds=11.0)
        assert watched.tick(watching) == ["ready"]
        watched.tick(watching)
        watched.set("ok", seconds=0.1)
        assert "alive" in watched.tick(watching)
    assert [record.getMessage() for record in caplog.records] == [
        "not healthy: cam: no result for 11 s",
        "healthy again after 2 s",
    ]


def test_much_fewer_results_are_reported_once(watched, caplog):
    watching = _operation(watched)
    total = 0
    with caplog.at_level(logging.INFO, "y7edge"):
        for rate in (0, 30, 30, 14, 12, 20, 29):
            total += 60 * rate
            watched.set("ok", results=total, seconds=0.1)
            watched.tick(watching, 60)
    slow, again = (record.getMessage() for record in caplog.records)
    assert slow.startswith("cam: 14 results per second in the last minute, 30 at best")
    assert again == "cam: 29 results per second again"


def test_a_camera_that_is_much_too_fast_is_reported_once(watched, caplog):
    watching = _operation(watched)
    with caplog.at_level(logging.INFO, "y7edge"):
        for minute in range(4):
            counts = {"frames": 1800 * minute, "dropped": 1700 * minute, "results": 100 * minute}
            watched.set("ok", seconds=0.1, **counts)
            watched.tick(watching, 60)
    (record,) = caplog.records
    assert record.getMessage().startswith("cam: 1700 of 1800 frames were dropped in the last min")


def test_the_report_tells_of_the_reload(watched):
    reloader = Reloader()
    watching = _operation(watched, reloader)
    report = watching.report()
    assert report["reload"] == {"state": "none", "message": None, "seconds": None, "count": 0}
    assert (report["status"], report["problems"]) == ("starting", [])
    json.dumps(report)
    reloader.start(lambda: 1 / 0)
    reloader.request()
    _wait(lambda: reloader.outcome.state == "failed")
    watched.set("ok", results=1, seconds=0.1)
    assert watching.report()["reload"]["state"] == "failed"
    assert watching.report()["status"] == "ok"  # the old model goes on
    assert any("reload failed: ZeroDivisionError" in text for text in watched.tick(watching))
