"""Two RTSP servers on loopback: ``python rtsp_server.py PORT``; 0: any port. Prints both ports.

Paths: /h264, /mjpeg, /sound (H.264 with a sound track, which comes first), /resize (320x240, after
20 frames 640x480), /clock (each image shows ``time.monotonic()`` in ms, as 4 rows of 8 bits, the
lowest first). The second server has /h264 for the user "robot" with password "p@ss word".
"""

import sys
import time

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

CAMERA = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=15/1"
H264 = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 threads=1"
PAY = "rtph264pay config-interval=1 pt=96"
PATHS = {
    "/h264": f"( {CAMERA} ! {H264} ! {PAY} name=pay0 )",
    "/mjpeg": f"( {CAMERA},format=I420 ! jpegenc ! rtpjpegpay name=pay0 )",
    "/sound": (
        "( audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay0 "
        f"{CAMERA} ! {H264} ! {PAY} name=pay1 )"
    ),
    "/resize": (
        f"( {CAMERA} ! videoscale ! capsfilter name=size caps=video/x-raw,width=320,height=240 ! "
        f"{H264} ! {PAY} name=pay0 )"
    ),
    "/clock": (
        "( appsrc name=clock max-buffers=1 is-live=true do-timestamp=true format=time "
        "caps=video/x-raw,format=GRAY8,width=320,height=240,framerate=15/1 ! videoconvert ! "
        f"{H264} ! {PAY} name=pay0 )"
    ),
}


def resize(factory, media):
    """Change the resolution after 20 frames."""
    size = media.get_element().get_by_name("size")
    count = [0]

    def on_buffer(pad, info):
        count[0] += 1
        if count[0] == 20:
            size.set_property("caps", Gst.Caps.from_string("video/x-raw,width=640,height=480"))
        return Gst.PadProbeReturn.OK

    size.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, on_buffer)


def show_clock(factory, media):
    """Make images of the time."""

    def push(source, _):
        time.sleep(1 / 15)
        bits = [int(1000 * time.monotonic()) >> bit & 1 for bit in range(32)]
        image = np.kron(np.reshape(bits, (4, 8)), np.full((60, 40), 255)).astype(np.uint8)
        source.emit("push-buffer", Gst.Buffer.new_wrapped(image.tobytes()))

    media.get_element().get_by_name("clock").connect("need-data", push)


def serve(port, paths, password=None):
    """Start a server; return its port."""
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    if password:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic("robot", password), token)
        server.set_auth(auth)
    for path, text in paths.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(text)
        factory.set_shared(True)
        if password:
            permissions = GstRtspServer.RTSPPermissions()
            permissions.add_permission_for_role("user", "media.factory.access", True)
            permissions.add_permission_for_role("user", "media.factory.construct", True)
            factory.set_permissions(permissions)
        if path == "/resize":
            factory.connect("media-configure", resize)
        if path == "/clock":
            factory.connect("media-configure", show_clock)
        server.get_mount_points().add_factory(path, factory)
    if not server.attach(None):
        sys.exit(f"port {port} is in use")
    return server.get_bound_port(), server


Gst.init(None)
public, _server = serve(sys.argv[1], PATHS)
private, _other = serve("0", {"/h264": PATHS["/h264"]}, password="p@ss word")
print(public, private, flush=True)
GLib.MainLoop().run()
