"""Log what a program sees when an RTSP camera is killed, restarted, and frozen.

    python examples/research/rtsp_restart.py                    # the log of docs/cameras.md
    python examples/research/rtsp_restart.py --backend opencv

The camera is the RTSP server of the tests on loopback: H.264 over TCP, 15 frames per second. It is
killed by SIGKILL, started again after 5 s, and later stopped by SIGSTOP for 5 s, as a network that
loses all packets. Needs GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0).
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

from y7edge.errors import SourceTimeout
from y7edge.sources.base import Source
from y7edge.sources.uri import open_source

SERVER = Path(__file__).parents[2] / "tests" / "sources" / "rtsp_server.py"
log = logging.getLogger("camera")


def start(port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """Start a server; return it and its port."""
    server = subprocess.Popen(
        [sys.executable, str(SERVER), str(port)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    return server, int(server.stdout.readline().split()[0])


def read(source: Source, seconds: float) -> None:
    """Read for some time; log the frames, and each change of the state."""
    frames, state = 0, source.status.state
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            source.read(0.05)
            frames += 1
        except SourceTimeout:
            pass
        if source.status.state != state:
            state = source.status.state
            log.info("state: %s", state)
    log.info("%d frames within %g s", frames, seconds)


def main() -> None:
    """Print the log; times are in seconds since the start."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backend", choices=("gstreamer", "opencv"), default="gstreamer")
    backend = parser.parse_args().backend
    begin = time.time()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(seconds)5.1f %(levelname)-7s %(message).200s"))
    handler.addFilter(lambda record: record.__dict__.update(seconds=record.created - begin) or True)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    server, port = start()
    try:
        with open_source(f"rtsp://127.0.0.1:{port}/h264?backend={backend}") as source:
            read(source, 3)
            log.info("--- the server is killed")
            server.kill()
            server.wait()
            read(source, 5)
            log.info("--- the server is started again")
            server, _ = start(port)
            read(source, 15)  # attempts count anew after 10 s
            log.info("--- the server is stopped")
            server.send_signal(signal.SIGSTOP)
            read(source, 5)
            log.info("--- the server continues")
            server.send_signal(signal.SIGCONT)
            read(source, 5)
            status = source.status
            log.info(
                "%d frames made, %d dropped, opened again %d times",
                *(status.frames, status.dropped, status.reconnects),
            )
            closing = time.monotonic()
        log.info("closed within %.2f s", time.monotonic() - closing)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
