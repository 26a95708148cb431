"""Servers on loopback: RTSP in a process of its own, Motion JPEG over HTTP in a thread."""

import base64
import contextlib
import select
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

SERVER = Path(__file__).with_name("rtsp_server.py")


class RtspServer:
    """The servers of ``rtsp_server.py``; ``port``: public, ``private``: with a password."""

    def __init__(self, port=0):
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), str(port)], stdout=subprocess.PIPE, text=True
        )
        ready, _, _ = select.select([self._process.stdout], [], [], 60)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.kill()
            raise RuntimeError("the RTSP server does not start")
        self.port, self.private = map(int, line.split())

    def freeze(self):
        """Stop the servers without closing their connections."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self):
        """Kill the servers, as by a power failure."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = "Basic " + base64.b64encode(b"robot:p@ss word").decode()
        if "private" in self.path and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
        elif not self.path.endswith("mjpg"):
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):
                self._stream()

    def _stream(self):
        for number in range(10_000):
            grey = np.full((120, 160, 3), 20 + number % 200, np.uint8)
            data = cv2.imencode(".jpg", grey)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(0.05)

    def log_message(self, *_):
        """Do not print requests."""


@contextlib.contextmanager
def http_server():
    """Serve grey images that become brighter, as Motion JPEG; yield the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
