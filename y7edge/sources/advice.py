"""What to do about a fault of a camera or stream, in one line."""

from __future__ import annotations

import re

_ARGUS = (  # with the words of ``Camera``, which then does not add them
    "test it alone with nvgstcapture-1.0; a killed client leaves nvargus-daemon stuck: sudo "
    "systemctl restart nvargus-daemon; a container needs /tmp/argus_socket of the host"
)
_FORMATS = "the camera may lack this size, rate or codec: v4l2-ctl -d {place} --list-formats-ext"
_CSI = "; a CSI camera of a Jetson is csi://0"

_MJPEG = "http:// reads Motion JPEG; for other streams, such as HLS, add backend=opencv"
_HOST = "check that the host is reachable, and its port"
_URLS = "rtsp rtsps http https"

# Schemes, what the message of a library contains, and the advice; the first match counts.
_ADVICE = (
    ("csi", r"frame rate specified is greater", "use a lower rate; the modes are printed on start"),
    ("csi", r".", _ARGUS),
    ("v4l2", r"busy", "another program uses the camera: fuser -v {place} shows which"),
    ("v4l2", r"permission|denied", "sudo usermod -aG video $USER, then log in again"),
    ("v4l2", r"no space left", "the USB bus is full: use MJPEG, a lower rate, or another USB port"),
    ("v4l2", r"negotiat|internal data|format", _FORMATS + _CSI),
    ("http https", r"demux|boundary|multipart|not-negotiated|not-linked", _MJPEG),
    (_URLS, r"unauthori|forbidden|\b40[13]\b", "check user name and password"),
    (_URLS, r"not found|\b404\b", "the host answers, but does not know this path"),
    ("rtsp rtsps", r"not-linked", "the stream has another codec, or no video: leave out codec="),
    (_URLS, r"resolv|name or service", "check the host name"),
    (_URLS, r"connect|refused|open|time|read|reach|eof|reason error", _HOST),
    ("gst", r"negotiat", "the pipeline must end in raw video in host memory, before the sink"),
)


def advice(scheme: str, place: str, text: str) -> str:
    """Return what to do about the message of a library, or an empty text if it is not known."""
    for schemes, pattern, words in _ADVICE:
        if scheme in schemes.split() and re.search(pattern, text, re.IGNORECASE):
            return words.format(place=place)
    return ""
