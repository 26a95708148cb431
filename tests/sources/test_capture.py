"""A camera in a child process: newest frames, counts, closing, and what it leaves behind."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.sources.processes import children, descriptors, watchers
from y7edge.errors import ConfigError, SourceError, SourceTimeout
from y7edge.sources.capture import Camera
from y7edge.sources.pattern import read_number

ROOT = Path(__file__).parents[2]


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["bgr", "rgb", "nv12"])
def test_frames_are_what_was_drawn(camera, format):
    with camera(format=format, width=322, height=242, stride=1024, fps=50) as source:
        before = time.monotonic_ns()
        frames = [source.read(10) for _ in range(5)]
        status = source.status
    assert [read_number(frame) for frame in frames] == [frame.sequence for frame in frames]
    for frame in frames:
        assert frame.size == (322, 242) and frame.format == format
        assert frame.image.flags.c_contiguous and frame.image.flags.writeable
        assert frame.stride == (322 if format == "nv12" else 966)
        assert frame.image.shape == ((363, 322) if format == "nv12" else (242, 322, 3))
        assert (frame.clock, frame.rate, frame.source) == ("driver", 50, "test://pattern")
        assert 0 <= frame.age_ns(time.monotonic_ns()) < 5e9
    assert frames[-1].timestamp_ns > before
    if format == "nv12":
        assert frames[0].image[242:].min() >= 90 and frames[0].image[242:].max() <= 170
    assert (status.state, status.backend, status.rate) == ("running", "y7edge", 50)
    assert "322x242" in status.detail


def test_frames_stay_as_they_are(camera):
    """The caller owns the image: it may write to it and keep it."""
    with camera(fps=100) as source:
        first = source.read(10)
        kept = first.image.copy()
        for _ in range(8):
            source.read(10).image[:] = 0
        assert (first.image == kept).all()


def test_a_consumer_ten_times_too_slow_gets_the_newest_frame(camera):
    with camera(fps=100) as source:
        source.read(10)
        late, shown = [], 1
        for _ in range(10):
            time.sleep(0.1)
            frame = source.read(10)
            late.append(frame.age_ns(time.monotonic_ns()) / 1e6)
            shown += 1
            assert read_number(frame) == frame.sequence
            assert frame.sequence + 1 == shown + frame.dropped
        status = source.status
        assert status.frames == shown + status.dropped
    # Half of the frames are younger than five intervals; in a queue they would get older and older.
    assert sorted(late)[5] < 50, late
    assert frame.dropped >= 50
    status = source.status
    assert status.frames == shown + status.dropped


def test_nothing_is_lost_or_counted_twice_when_the_reader_is_fast(camera):
    with camera(fps=200) as source:
        frames = [source.read(10) for _ in range(100)]
    numbers = [frame.sequence for frame in frames]
    assert numbers == sorted(set(numbers))
    assert all(f.sequence + 1 == shown + f.dropped for shown, f in enumerate(frames, 1))


def test_frames_that_the_device_skipped_are_counted(camera, grabbers):
    with camera("numbered", live=True, skip=2, count=4, pause_s=0.05) as source:
        frames = [source.read(10) for _ in range(4)]
        assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 1, 2, 3]
        assert [frame.sequence for frame in frames] == [0, 3, 6, 9]
        assert [frame.dropped for frame in frames] == [0, 2, 4, 6]
        status = source.status
    assert (status.frames, status.dropped) == (10, 6)


def test_4k_at_60_frames_per_second(camera):
    """No rate is required: the machine may be slow. Frames are whole, and all are counted."""
    with camera(fps=60, width=3840, height=2160, format="nv12") as source:
        end, shown, begin = time.monotonic() + 1.5, 0, time.monotonic()
        while time.monotonic() < end:
            frame = source.read(20)
            shown += 1
            assert read_number(frame) == frame.sequence
            assert frame.image.shape == (3240, 3840)
        seconds = time.monotonic() - begin
        status = source.status
        assert status.frames == shown + status.dropped
    print(f"4K at 60: {status.frames / seconds:.0f} made, {shown / seconds:.0f} shown each second")
    assert shown >= 3


def test_two_cameras_at_once(camera):
    first, second = camera(fps=100), camera(name="test://pattern?2", fps=50, format="nv12")
    for _ in range(10):
        for source, format in ((first, "bgr"), (second, "nv12")):
            frame = source.read(10)
            assert frame.format == format and read_number(frame) == frame.sequence
            assert frame.source == source.name
    first.close()
    assert second.read(10) is not None


def test_the_resolution_changes_in_the_middle(camera, grabbers):
    sizes = [[64, 48], [64, 48], [32, 24], [640, 480], [320, 240], [1280, 720]]
    with camera(
        "numbered", live=True, sizes=sizes, count=12, pause_s=0.05, format="nv12"
    ) as source:
        seen = set()
        while True:
            try:
                frame = source.read(1)
            except SourceTimeout:
                break
            number = int(frame.image[0, 0])
            assert list(frame.size) == sizes[number % 6]
            assert (frame.image == number).all()
            seen.add(frame.size)
        status = source.status
    assert {(1280, 720), (32, 24)} <= seen
    assert status.frames == 12


# --- files: nothing is dropped -------------------------------------------------------------------


def test_a_source_that_is_not_live_returns_every_frame_and_ends(camera, grabbers, until):
    with camera("numbered", count=30) as source:
        assert not source.live
        first = source.read(10)
        time.sleep(0.3)  # the child waits
        frames = [first, *source]
        assert [int(frame.image[0, 0, 0]) for frame in frames] == list(range(30))
        assert [frame.sequence for frame in frames] == list(range(30))
        assert all(frame.dropped == 0 for frame in frames)
        assert source.read(0) is None
        status = source.status
    assert (status.state, status.frames, status.dropped) == ("ended", 30, 0)


def test_a_file_of_mixed_sizes_is_complete(camera, grabbers):
    sizes = [[64, 48], [640, 480], [32, 24], [1280, 720]]
    with camera("numbered", count=9, sizes=sizes) as source:
        frames = list(source)
    assert [list(frame.size) for frame in frames] == [sizes[n % 4] for n in range(9)]
    assert all((frame.image == n).all() for n, frame in enumerate(frames))


def test_a_file_is_not_stalled_while_its_reader_is_slow(camera, grabbers):
    with camera("numbered", count=8, open_timeout=1.5) as source:
        source.read(10)
        time.sleep(2.5)
        assert source.status.state == "running"
        assert len(list(source)) == 7


def test_a_file_that_hangs_fails(camera, grabbers, quick, until):
    source = camera("numbered", count=8, pause_s=60, open_timeout=2)
    with pytest.raises(
        SourceError, match=r"^test://pattern: no frame within 2 s after the device was opened$"
    ):
        source.read(10)
    source.close()
    until(lambda: not watchers())  # while SIGTERM comes early


# --- waiting and closing -------------------------------------------------------------------------


def test_time_out_and_end_are_different(camera):
    source = camera(fps=2)
    source.read(10)
    with pytest.raises(SourceTimeout, match=r"no frame within 0\.01 s; the source is running"):
        source.read(0.01)
    with pytest.raises(SourceTimeout):
        source.read(0)
    assert source.read(10) is not None
    source.close()
    assert source.read() is None
    assert source.status.state == "closed"
    source.close()


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e30])
def test_a_time_out_that_is_none(camera, timeout):
    with camera() as source, pytest.raises(ConfigError, match="expected a number of seconds"):
        source.read(timeout)


@pytest.mark.parametrize("options", [{"open_timeout": 0}, {"retries": -1}, {"open_timeout": 1e9}])
def test_arguments_out_of_range(camera, options):
    with pytest.raises(ConfigError):
        camera(**options)


def test_close_wakes_a_reader(camera):
    source = camera(fps=1)
    source.read(10)
    found = []
    reader = threading.Thread(target=lambda: found.append(source.read()))
    reader.start()
    time.sleep(0.05)
    begin = time.monotonic()
    source.close()
    reader.join(10)
    assert found == [None] and time.monotonic() - begin < 5


def test_nothing_is_left_after_close(camera, until):
    camera().close()  # what is imported, once
    until(lambda: not watchers())
    gc.collect()
    before, threads = descriptors(), threading.active_count()
    source = camera(fps=100)
    source.read(10)
    begin = time.monotonic()
    source.close()
    assert time.monotonic() - begin < 2  # a second on a machine that is not busy
    until(lambda: not watchers(), 5)
    assert children() == [] and descriptors() == before
    assert threading.active_count() == threads


def opens(count):
    """Open and close many times; return descriptors and resident KB of memory, early and late."""
    measured = []
    for number in range(count):
        with Camera("test://pattern", "pattern", {"fps": 200, "width": 1280, "height": 720}) as one:
            for _ in range(3):
                one.read(20)
        if number in (count // 4, count - 1):
            gc.collect()
            status = Path("/proc/self/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0])
            measured.append((descriptors(), resident))
    return measured


@pytest.mark.slow
def test_descriptors_and_memory_are_flat_over_12_opens(camera):
    (early, early_kb), (late, late_kb) = opens(12)
    assert early == late and late_kb - early_kb < 16_000, (early_kb, late_kb)


@pytest.mark.slow
def test_descriptors_and_memory_are_flat_over_200_opens(camera):
    (early, early_kb), (late, late_kb) = opens(200)
    assert early == late and late_kb - early_kb < 8_000, (early_kb, late_kb)
    assert children() == []


def test_a_camera_that_is_not_closed_is_collected(until):
    source = Camera("test://pattern", "pattern", {})
    source.read(10)
    del source
    gc.collect()
    until(lambda: not watchers() and not children())


def test_it_works_in_a_thread(camera):
    found = []

    def run():
        with camera(fps=100) as source:
            found.extend(source.read(10).sequence for _ in range(3))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert len(found) == 3


def test_it_cannot_be_copied(camera):
    source = camera()
    for make in (pickle.dumps, copy.copy):
        with pytest.raises(SourceError, match="cannot be pickled or copied: open it there"):
            make(source)


# --- other processes -----------------------------------------------------------------------------


def python(code, *, wait=True, cwd=ROOT, **options):
    """Run code in a new interpreter; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        # From 3.12 on, Python warns of fork in a process with threads, which these tests are about.
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", code],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    if not wait:
        return process
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


OPEN = """
import os, signal, sys, threading, time
from y7edge.sources.capture import Camera
source = Camera("test://pattern", "pattern", {options})
source.read(10)
child = int(open(f"/proc/self/task/{os.getpid()}/children").read() or 0) or [
    int(p) for t in os.listdir("/proc/self/task")
    for p in open(f"/proc/self/task/{t}/children").read().split()][0]
print(child, flush=True)
"""


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_child_ends_when_its_parent_is_killed(until):
    code = OPEN.replace("{options}", "{}") + "time.sleep(60)"
    with python(code, wait=False) as process:
        child = int(process.stdout.readline())
        assert is_running(child)
        process.kill()
        until(lambda: not is_running(child))


def test_a_child_that_hangs_does_not_outlive_its_parent(until):
    code = (
        "from y7edge.sources import child; before = 'main(int(sys.argv[1])'\n"
        "after = 'import y7edge.sources.worker as worker; worker._STOP_S = 1; ' + before\n"
        "child._CODE = child._CODE.replace(before, after)\n"
    ) + OPEN.replace("{options}", "{'fault': 'hang', 'after': 1}")
    with python(code + "time.sleep(60)", wait=False) as process:
        child = int(process.stdout.readline())
        process.kill()
        until(lambda: not is_running(child))


def test_a_forked_process_does_not_keep_the_child_alive(until):
    """It has a copy of the socket, so that the child does not see the end of the stream."""
    fork = "forked = os.fork()\nif not forked: time.sleep(30); os._exit(0)\n"
    code = OPEN.replace("{options}", "{}") + fork + "print(forked, flush=True); time.sleep(60)"
    with python(code, wait=False) as process:
        child, forked = int(process.stdout.readline()), int(process.stdout.readline())
        process.kill()
        until(lambda: not is_running(child))
        os.kill(forked, signal.SIGKILL)


def test_the_interpreter_ends_without_close_and_leaves_no_child():
    begin = time.monotonic()
    status, output = python(OPEN.replace("{options}", "{}"))
    assert status == 0, output
    assert not is_running(int(output)) and time.monotonic() - begin < 20


def test_a_hanging_child_does_not_delay_the_end_of_the_interpreter(until):
    """The kernel ends it later."""
    code = OPEN.replace("{options}", "{'fault': 'hang', 'after': 1}") + (
        "time.sleep(0.2); begin = time.monotonic()\n"
        "import atexit; from y7edge.sources import capture\n"
        "atexit._run_exitfuncs(); print(time.monotonic() - begin)"
    )
    status, output = python(code)
    child, seconds = output.split()
    assert status == 0 and float(seconds) < 3
    assert is_running(int(child))
    alarm = Path(f"/proc/{child}/status").read_text()
    caught = int(alarm.partition("SigCgt:")[2].split()[0], 16)
    ignored = int(alarm.partition("SigIgn:")[2].split()[0], 16)
    assert not (caught | ignored) >> (signal.SIGALRM - 1) & 1
    os.kill(int(child), signal.SIGKILL)


def test_a_signal_interrupts_read_and_the_camera_goes_on():
    code = OPEN.replace("{options}", "{'fps': 1}") + (
        "timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)); timer.start()\n"
        "for _ in range(20):\n"
        "    try: source.read()\n"
        "    except KeyboardInterrupt: break\n"
        "else: sys.exit('was not interrupted')\n"
        "print(source.read(10).sequence > 0, source.status.state)\n"
        "source.close()"
    )
    status, output = python(code)
    assert status == 0 and output.split()[1:] == ["True", "running"], output


def test_ctrl_c_in_the_terminal_does_not_reach_the_child(until):
    """The process group gets SIGINT; the child is stopped by the parent, in order."""
    code = OPEN.replace("{options}", "{'fps': 100}") + (
        "try: print(flush=True); time.sleep(60)\nexcept KeyboardInterrupt: pass\n"
        "print(source.read(10).sequence > 0); source.close()"
    )
    with python(code, wait=False, start_new_session=True) as process:
        process.stdout.readline()
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "True\n"


def test_a_program_that_was_stopped_for_a_while_goes_on_with_the_newest_frame():
    """The socket is full of messages by then, and a second of silence was not a fault."""
    code = OPEN.replace("{options}", "{'fps': 400}") + (
        "sys.stdin.readline()\n"
        "frame = source.read(10); age = frame.age_ns(time.monotonic_ns()) / 1e6\n"
        "for _ in range(50): last = source.read(10)\n"
        "print(age, frame.dropped, last.sequence - frame.sequence, source.status.reconnects)\n"
        "source.close()"
    )
    with python(code, wait=False, stdin=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate("go\n", timeout=30)
    age, dropped, _, reconnects = output.split()
    assert float(age) < 500 and int(dropped) > 300 and int(reconnects) == 0, output


def test_it_refuses_to_be_used_after_a_fork():
    code = OPEN.replace("{options}", "{'fps': 100}") + (
        "from y7edge.errors import SourceError\n"
        "process = os.fork()\n"
        "if not process:\n"
        "    try: source.read(1)\n"
        "    except SourceError as error: print(error, flush=True)\n"
        "    source.close(); del source; os._exit(0)\n"
        "os.waitpid(process, 0); print(source.read(10).sequence > 0); source.close()"
    )
    status, output = python(code)
    _, refused, went_on = output.splitlines()
    assert status == 0 and went_on == "True"
    assert "cannot be used after a fork: open it in this process" in refused


def test_the_child_finds_the_package_wherever_it_is_started(tmp_path):
    """Also in a folder with modules that hide those of the standard library."""
    for name in ("json", "numpy", "socket", "y7edge"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import y7edge.sources.capture as capture\n"
        f"import os; os.chdir({str(tmp_path)!r}); sys.path[:] = ['']\n"
        "with capture.Camera('test://pattern', 'pattern', {}) as one: print(one.read(10).size)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout == "(640, 480)\n", done.stderr


def test_the_main_module_is_not_run_again(tmp_path):
    script = tmp_path / "robot.py"
    script.write_text(
        "from y7edge.sources.capture import Camera\nprint('started')\n"
        "with Camera('test://pattern', 'pattern', {}) as one: print(one.read(10).size)"
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "started\n(640, 480)\n", done.stderr


def test_the_child_has_no_descriptor_that_it_does_not_need(camera):
    with Path(os.devnull).open() as extra:
        os.set_inheritable(extra.fileno(), True)
        source = camera(fps=100)
        source.read(10)
        (child,) = children()
        links = [str(entry.readlink()) for entry in Path(f"/proc/{child}/fd").iterdir()]
    kinds = sorted(link.partition(":")[0].split(" ")[0] for link in links)
    # The descriptor of the ring, and its mapping's.
    assert kinds == sorted(["/dev/null", "pipe", "pipe", "socket", "/memfd", "/memfd"]), links


def test_frames_are_compared_as_arrays(camera):
    with camera(fps=100) as source:
        first, second = source.read(10), source.read(10)
    assert isinstance(first.image, np.ndarray) and not np.array_equal(first.image, second.image)
