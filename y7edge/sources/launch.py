"""Launch strings of GStreamer for cameras and streams, and the choice of the library that captures.

The strings are those that NVIDIA documents for a Jetson ("Accelerated GStreamer", Jetson Linux
Developer Guide), with fall-backs to the elements of any Linux. Nothing here imports GStreamer.

Values of options cannot add elements to a string: they are numbers and words of ``options.py``, or
checked and quoted. Only ``gst://`` is free text. User names and passwords are not in a string: they
are set as properties of the element.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

from y7edge import jetson
from y7edge.errors import ConfigError, RuntimeMissing, SourceError
from y7edge.sources.address import NETWORK, rtp_address, url
from y7edge.sources.devices import device
from y7edge.sources.options import FLIPS, SCHEMES, check_options, option_name
from y7edge.text import is_printable

Has = Callable[[str, str | None], bool]
"""Whether GStreamer has an element; whether that element has a property, if one is named."""

# The last elements are found by these names, also for their pads' probes.
SOURCE, NEWEST, SINK = "y7edge-source", "y7edge-newest", "y7edge-sink"

LATENCY_MS = 100  # how long a jitter buffer waits for a late packet
TIMEOUT_S = 5.0  # GStreamer's own: 20 s until a dead RTSP server is noticed over TCP
SIZE, RATE = (1280, 720), Fraction(30)  # jetson-inference's defaults

_DIRECTIONS = ("identity", "90l", "180", "90r", "horiz", "ur-ll", "vert", "ul-lr")  # as FLIPS
_PROPERTIES = {  # of nvarguscamerasrc, whose names differ between releases only by being absent
    **{"sensor_mode": "sensor-mode", "wbmode": "wbmode", "aelock": "aelock", "awblock": "awblock"},
    **{"exposure": "exposuretimerange", "gain": "gainrange", "digital_gain": "ispdigitalgainrange"},
    **{"exposure_compensation": "exposurecompensation", "aeantibanding": "aeantibanding"},
    **{"tnr_mode": "tnr-mode", "tnr_strength": "tnr-strength", "ee_mode": "ee-mode"},
    **{"ee_strength": "ee-strength", "saturation": "saturation"},
}
JETSON = ("nvarguscamerasrc", "nvvidconv", "nvjpegdec", "nvv4l2decoder")
"""Elements that only a Jetson has."""

_NO_JETSON = (
    "csi:// is the camera connector of a Jetson, and this machine is not one: a USB camera is "
    "/dev/video0, the camera of a Raspberry Pi is gst://libcamerasrc"
)
ELEMENTS = (
    *("videoconvert", "videoscale", "videoflip", "decodebin"),
    *("v4l2src", "jpegdec", "rtspsrc", "udpsrc", "souphttpsrc", "multipartdemux"),
    *("h264parse", "h265parse", "avdec_h264", "avdec_h265"),
)
"""Elements for cameras and the usual streams; others are for rarer codecs."""

OPENCV = ("v4l2", "rtsp", "http", "https")
"""Schemes that OpenCV captures from too."""

# Options that have an effect with OpenCV.
_OPENCV = {"v4l2": {"width", "height", "rate", "flip", "codec"}}
_OPENCV_STREAMS = {"width", "height", "rate", "flip", "transport", "timeout"}

# Package of Debian and Ubuntu for an element; the first match counts.
_PACKAGES = (
    (r"nv.*", "nvidia-l4t-gstreamer"),
    (r"avdec_.*", "gstreamer1.0-libav"),
    (r".*(parse|265dec|h264dec|de265dec|mpeg2dec)", "gstreamer1.0-plugins-bad"),
    (r"(videoconvert|videoscale|decodebin)", "gstreamer1.0-plugins-base"),
    (r".*", "gstreamer1.0-plugins-good"),
)


@dataclass(frozen=True, slots=True)
class Codec:
    """Elements for a codec: RTP payload, parser, and decoders on the CPU, the best first."""

    caps: str
    encoding: str
    depayloader: str
    parser: str | None
    decoders: tuple[str, ...]


_CODECS: Mapping[str, Codec] = {
    "h264": Codec(
        *("video/x-h264", "H264", "rtph264depay", "h264parse"), ("avdec_h264", "openh264dec")
    ),
    "h265": Codec(
        *("video/x-h265", "H265", "rtph265depay", "h265parse"), ("avdec_h265", "libde265dec")
    ),
    "vp8": Codec("video/x-vp8", "VP8", "rtpvp8depay", None, ("vp8dec", "avdec_vp8")),
    "vp9": Codec("video/x-vp9", "VP9", "rtpvp9depay", "vp9parse", ("vp9dec", "avdec_vp9")),
    "mpeg2": Codec(
        *("video/mpeg, mpegversion=(int)2", "MPV", "rtpmpvdepay", "mpegvideoparse"),
        ("avdec_mpeg2video", "mpeg2dec"),
    ),
    "mpeg4": Codec(
        *("video/mpeg, mpegversion=(int)4", "MP4V-ES", "rtpmp4vdepay", "mpeg4videoparse"),
        ("avdec_mpeg4",),
    ),
    "mjpeg": Codec("image/jpeg", "JPEG", "rtpjpegdepay", None, ("jpegdec", "avdec_mjpeg")),
}


@dataclass(frozen=True, slots=True)
class Launch:
    """A pipeline as text, without user name and password.

    Attributes:
        text: for ``gst_parse_launch``; its last element is an appsink with the name ``SINK``.
        live: True for cameras and streams; None: GStreamer knows, after the pipeline has started.
        secrets: properties of the element ``SOURCE`` that are not in the text.
        limit: how many frames per second may pass; None: all. videorate does not drop frames of
            streams without a constant rate, such as Motion JPEG over HTTP.
    """

    text: str
    live: bool | None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    limit: float | None = None


def launch(scheme: str, place: str, options: Mapping[str, Any], has: Has) -> Launch:
    """Return the pipeline for a camera or stream.

    Args:
        scheme: one of ``options.SCHEMES``.
        place: what follows ``://`` in the URI, without the options: ``0``, ``/dev/video0``,
            ``user:password@host:554/path?channel=1``, or a pipeline without its sink.
        options: see ``options.py``.
        has: which elements and properties exist here.

    Raises:
        ConfigError: an option is not valid.
        SourceError: the place is not valid, or this release of an element lacks a property.
        RuntimeMissing: a required element is not installed.
    """
    values = check(scheme, place, options)
    made = _BUILDERS[scheme](scheme, place, values, has)
    limit = float(values["rate"]) if scheme in NETWORK and "rate" in values else None
    return replace(made, limit=limit)


def check(scheme: str, place: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check an address as far as possible without GStreamer; return the options by our names.

    Raises:
        ConfigError: an option is not valid.
        SourceError: the scheme is not that of a camera or stream, or the place is not valid.
    """
    if scheme not in SCHEMES:
        raise SourceError(f"{scheme!r} is not a camera or stream, expected {', '.join(SCHEMES)}")
    values = check_options(scheme, options)
    if scheme == "csi" and not re.fullmatch(r"[0-9]{0,3}", place):
        raise SourceError(f"csi://{place}: expected the number of a camera, as in csi://0")
    if scheme == "v4l2":
        device(place)
    if scheme == "gst" and (not place.strip() or not is_printable(place.replace("\n", " "))):
        raise SourceError("gst://: expected a pipeline without its sink, in printable characters")
    if scheme in NETWORK and ("width" in values) != ("height" in values):
        raise ConfigError(
            f"{scheme}:// needs both options width and height, or none of them. If they are "
            "parameters of the server, end the URI with #"
        )
    if scheme == "rtp":
        rtp_address(place)
    if scheme in ("rtsp", "rtsps", "http", "https"):
        url(scheme, place)
    return values


def choose(scheme: str, place: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the module that captures a live address, and its options: JSON values.

    GStreamer captures if PyGObject and GStreamer's typelibs are installed, else OpenCV. The option
    ``backend`` forces one of them.

    Raises:
        ConfigError: an option is not valid, or OpenCV does not have it.
        SourceError: the place is not valid.
        RuntimeMissing: the library that is needed is not installed.
    """
    values = check(scheme, place, options)
    backend = values.pop("backend", "auto")
    lacking = gstreamer_problem()
    asked = {"scheme": scheme, "place": place}
    kept = {name: str(value) for name, value in options.items() if option_name(name) != "backend"}
    if backend == "gstreamer" or (backend == "auto" and lacking is None):
        if lacking is not None:
            raise RuntimeMissing(f"{scheme}:// with GStreamer: {lacking}")
        return "appsink", {**asked, "options": kept}
    why = lacking or "backend=opencv"
    if scheme == "csi" and jetson.find() is None:
        raise RuntimeMissing(_NO_JETSON)
    if scheme not in OPENCV:
        raise RuntimeMissing(f"{scheme}:// needs GStreamer: {why}")
    others = sorted(set(values) - _OPENCV.get(scheme, _OPENCV_STREAMS))
    if values.get("format") == "bgr":
        others.remove("format")
    if others:
        raise ConfigError(f"{scheme}:// has no option {others[0]} without GStreamer: {why}")
    if values.get("codec") not in (None, "mjpeg", "raw"):
        raise ConfigError(f"codec={values['codec']} needs GStreamer ({why}), expected mjpeg or raw")
    if find_spec("cv2") is None:
        raise RuntimeMissing(
            f'{scheme}:// needs GStreamer ({why}), or OpenCV: pip install "y7edge[opencv]"'
        )
    return "video_capture", {**asked, "options": kept, "why": why}


def gstreamer_problem() -> str | None:
    """Return why GStreamer cannot be used from this Python, and what to do; None if it can."""
    fix = (
        "sudo apt install python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good "
        "gstreamer1.0-plugins-bad gstreamer1.0-libav, and a virtual environment with "
        '--system-site-packages; or pip install "PyGObject<3.52", which needs headers'
    )
    try:
        import gi
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "gi":
            return f"PyGObject is not installed: {fix}"
        return f"PyGObject is that of another Python, or incomplete ({error}): {fix}"
    if not hasattr(gi, "require_version"):
        return f"{gi.__file__} hides PyGObject: rename it"
    for namespace, package in (
        ("Gst", "gir1.2-gstreamer-1.0"),
        ("GstVideo", "gir1.2-gst-plugins-base-1.0"),
    ):
        try:
            gi.require_version(namespace, "1.0")
        except ValueError as error:
            return f"{namespace} 1.0 is not usable ({error}): sudo apt install {package}"
    return None


def _csi(_: str, place: str, values: Mapping[str, Any], has: Has) -> Launch:
    """NVIDIA's ISP; the mode of the sensor is chosen by the driver unless the user names one."""
    if not has("nvarguscamerasrc", None):
        if jetson.find() is None:
            raise RuntimeMissing(_NO_JETSON)
        raise RuntimeMissing(
            "csi:// needs nvarguscamerasrc of JetPack, which GStreamer does not find here: sudo "
            "apt install nvidia-l4t-gstreamer"
        )
    _need(has, "nvvidconv")
    settings = [f"sensor-id={int(place or 0)}"]
    for name, element_property in _PROPERTIES.items():
        if name not in values:
            continue
        if not has("nvarguscamerasrc", element_property):
            raise SourceError(f"this release of nvarguscamerasrc has no {element_property}")
        settings.append(f"{element_property}={_value(values[name])}")
    width, height = values.get("width", SIZE[0]), values.get("height", SIZE[1])
    size = {"width": width, "height": height}
    memory = _caps("video/x-raw(memory:NVMM)", {**size, "rate": values.get("rate", RATE)}, "NV12")
    text = f"nvarguscamerasrc name={SOURCE} {' '.join(settings)} ! {memory}"
    # The ISP makes the requested size, so nvvidconv does not scale.
    return Launch(f"{text} ! {_to_host(values, {}, has)} ! {_sink()}", True)


def _v4l2(_: str, place: str, values: Mapping[str, Any], has: Has) -> Launch:
    """A USB camera or capture card: compressed if it can, because USB 2 is slow."""
    _need(has, "v4l2src")
    wanted = {name: values[name] for name in ("width", "height", "rate") if name in values}
    codec = values.get("codec")
    kinds = ["image/jpeg", "video/x-raw"]
    if codec is not None:
        kinds = ["video/x-raw" if codec == "raw" else _CODECS[codec].caps]
    # v4l2src prefers what is nearest to the first; other formats follow if nothing was asked for.
    usual = {"width": SIZE[0], "height": SIZE[1], "rate": RATE}
    choices = [_caps(kind, wanted or usual) for kind in kinds]
    caps = "; ".join(choices if wanted else [*choices, *kinds])
    text = f'v4l2src name={SOURCE} device="{device(place)}" ! capsfilter caps="{caps}"'
    decoding = [] if codec == "raw" else [_decode(codec, values, has)]
    return Launch(" ! ".join([text, *decoding, _to_host(values, {}, has), _sink()]), True)


def _rtsp(scheme: str, place: str, values: Mapping[str, Any], has: Has) -> Launch:
    location, secrets = url(scheme, place)
    _need(has, "rtspsrc")
    microseconds = round(values.get("timeout", TIMEOUT_S) * 1e6)
    protocols = {"udp": "udp-mcast+udp", "auto": "tcp+udp-mcast+udp"}
    transport = values.get("transport", "tcp")
    settings = (
        f'rtspsrc name={SOURCE} location="{location}" latency={values.get("latency", LATENCY_MS)} '
        f"drop-on-latency=true protocols={protocols.get(transport, transport)} "
        f"timeout={microseconds} tcp-timeout={microseconds}"
    )
    codec = _compressed(scheme, values)
    if codec is None:
        decoding = f"application/x-rtp, media=(string)video ! {_decode(None, values, has)}"
    else:
        decoding = _depayload(codec, values, has)
    return Launch(f"{settings} ! {decoding} ! {_stream_to_host(values, has)}", True, secrets)


def _rtp(_: str, place: str, values: Mapping[str, Any], has: Has) -> Launch:
    """RTP without a session: the codec is not announced, so it must be known."""
    host, port = rtp_address(place)
    for element in ("udpsrc", "rtpjitterbuffer"):
        _need(has, element)
    codec = _compressed("rtp", values) or "h264"
    caps = (
        "application/x-rtp, media=(string)video, clock-rate=(int)90000, "
        f"encoding-name=(string){_CODECS[codec].encoding}"
    )
    text = (
        f'udpsrc name={SOURCE} address="{host}" port={port} buffer-size=2097152 caps="{caps}" ! '
        f"rtpjitterbuffer latency={values.get('latency', LATENCY_MS)} drop-on-latency=true"
    )
    return Launch(
        f"{text} ! {_depayload(codec, values, has)} ! {_stream_to_host(values, has)}", True
    )


def _http(scheme: str, place: str, values: Mapping[str, Any], has: Has) -> Launch:
    """Motion JPEG over HTTP, as IP cameras and web_video_server of ROS serve it."""
    location, secrets = url(scheme, place)
    for element in ("souphttpsrc", "multipartdemux"):
        _need(has, element)
    text = (
        f'souphttpsrc name={SOURCE} location="{location}" is-live=true do-timestamp=true '
        f"timeout={round(values.get('timeout', TIMEOUT_S))}"
    )
    # Not decodebin: it would wait for further streams of multipartdemux.
    decoding = f"multipartdemux ! image/jpeg ! {_decode('mjpeg', values, has)}"
    return Launch(f"{text} ! {decoding} ! {_stream_to_host(values, has)}", True, secrets)


def _gst(_: str, place: str, values: Mapping[str, Any], has: Has) -> Launch:
    """A pipeline of the user; a sink is added unless it ends in an appsink.

    What ends in NV12 stays NV12, all else becomes BGR.
    """
    text = " ".join(place.split()).removesuffix("!").rstrip()
    if re.search(r"!\s*appsink\b", text):
        return Launch(text, None)
    nv12 = re.search(r"\bNV12\b", text.rpartition("!")[2])
    pixels = values.get("format", "nv12" if nv12 else "bgr").upper()
    _need(has, "videoconvert")
    convert = f"{_newest()} ! videoconvert ! {_caps('video/x-raw', {}, pixels)}"
    return Launch(f"{text} ! {convert} ! {_sink()}", None)


def _compressed(scheme: str, values: Mapping[str, Any]) -> str | None:
    """Return the codec of a stream; None: it is announced."""
    if values.get("codec") == "raw":
        raise ConfigError(f"option codec is 'raw', expected one of {', '.join(_CODECS)}: {scheme}")
    codec: str | None = values.get("codec")
    return codec


def _depayload(codec: str, values: Mapping[str, Any], has: Has) -> str:
    _need(has, _CODECS[codec].depayloader)
    return f"{_CODECS[codec].depayloader} ! {_decode(codec, values, has)}"


def _decode(codec: str | None, values: Mapping[str, Any], has: Has) -> str:
    """Return the decoder of a codec; None: GStreamer finds it by its rank."""
    on_cpu = not _on_jetson(values, has)
    if codec is None:
        software = on_cpu and has("nvvidconv", None) and has("decodebin", "force-sw-decoders")
        _need(has, "decodebin")
        # (ANY): memory of a GPU too, which nvvidconv reads. Audio is not linked.
        return f"decodebin{' force-sw-decoders=true' * software} ! video/x-raw(ANY)"
    named = _CODECS[codec]
    parser = [named.parser] if named.parser and has(named.parser, None) else []
    if not on_cpu and codec == "mjpeg" and has("nvjpegdec", None):
        return "nvjpegdec ! video/x-raw"  # as jetson-utils: not in NVMM
    if not on_cpu and has("nvv4l2decoder", None):
        wanted = {"mjpeg": "1"} if codec == "mjpeg" else {"enable-max-performance": "1"}
        settings = [f" {k}={v}" for k, v in wanted.items() if has("nvv4l2decoder", k)]
        return " ! ".join([*parser, f"nvv4l2decoder{''.join(settings)}"])
    for decoder in named.decoders:
        if has(decoder, None):
            return " ! ".join([*parser, decoder])
    raise RuntimeMissing(
        f"codec={codec} needs one of {', '.join(named.decoders)}: {install(named.decoders[0])}"
    )


def _on_jetson(values: Mapping[str, Any], has: Has) -> bool:
    """Whether the hardware of a Jetson decodes and converts."""
    if values.get("decoder") == "v4l2" and not has("nvvidconv", None):
        raise RuntimeMissing(f"decoder=v4l2 needs nvvidconv of JetPack: {install('nvvidconv')}")
    return values.get("decoder") != "cpu" and has("nvvidconv", None)


def _stream_to_host(values: Mapping[str, Any], has: Has) -> str:
    """Return the end of a stream's pipeline: other size, memory of the host."""
    size = {name: values[name] for name in ("width", "height") if name in values}
    return f"{_to_host(values, size, has)} ! {_sink()}"


def _to_host(values: Mapping[str, Any], size: Mapping[str, Any], has: Has) -> str:
    """Return the conversion to NV12 or BGR in memory of the host; ``size`` is before the flip."""
    flip = FLIPS.index(values.get("flip", "none"))
    if _on_jetson(values, has):
        if flip % 2 and size:  # flips that exchange width and height
            names = {"width": "height", "height": "width"}
            size = {names[name]: value for name, value in size.items()}
        convert = f"nvvidconv flip-method={flip} ! "
        # nvvidconv cannot make BGR; NV12 needs no conversion on the CPU.
        if values.get("format", "nv12") == "nv12":
            return convert + _caps("video/x-raw", size, "NV12")
        _need(has, "videoconvert")
        made = _caps("video/x-raw", size, "BGRx")
        return f"{convert}{made} ! {_newest()} ! videoconvert ! {_caps('video/x-raw', {}, 'BGR')}"
    steps = [_newest()]
    if size:
        _need(has, "videoscale")
        steps += ["videoscale", _caps("video/x-raw", size)]
    _need(has, "videoconvert")
    # BGR: videoconvert reads the matrix and range of the stream, which NV12 does not carry.
    steps += ["videoconvert", _caps("video/x-raw", {}, values.get("format", "bgr").upper())]
    if flip:
        _need(has, "videoflip")
        steps.append(f"videoflip video-direction={_DIRECTIONS[flip]}")
    return " ! ".join(steps)


def _newest() -> str:
    """Return a queue that drops old frames, before the CPU converts frames that nobody reads."""
    limits = "max-size-buffers=1 max-size-bytes=0 max-size-time=0"
    return f"queue name={NEWEST} leaky=downstream {limits}"


def _sink() -> str:
    return f"appsink name={SINK} max-buffers=1 drop=true sync=false enable-last-sample=false"


def _caps(kind: str, values: Mapping[str, Any], pixels: str | None = None) -> str:
    parts = [kind]
    parts += [f"{name}=(int){values[name]}" for name in ("width", "height") if name in values]
    if "rate" in values:
        parts.append(f"framerate=(fraction){values['rate'].numerator}/{values['rate'].denominator}")
    if pixels is not None:
        parts.append(f"format=(string){pixels}")
    return ", ".join(parts)


def _value(value: Any) -> str:
    """Return a property's value: a range is a text of two numbers."""
    if isinstance(value, tuple):
        return f'"{value[0]:.12g} {value[1]:.12g}"'
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _need(has: Has, element: str) -> None:
    if not has(element, None):
        raise RuntimeMissing(f"GStreamer has no {element} here: {install(element)}")


def install(element: str) -> str:
    """Return the command that installs an element on Debian and Ubuntu."""
    package = next(name for pattern, name in _PACKAGES if re.fullmatch(pattern, element))
    return f"sudo apt install {package}"


_BUILDERS: Mapping[str, Callable[[str, str, Mapping[str, Any], Has], Launch]] = {
    **{"csi": _csi, "v4l2": _v4l2, "rtsp": _rtsp, "rtp": _rtp, "gst": _gst},
    **{"rtsps": _rtsp, "http": _http, "https": _http},
}
