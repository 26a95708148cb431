"""Elements that stand in for NVIDIA's, with the names and properties of JetPack's plugins.

nvarguscamerasrc and nvvidconv work: frames are those of videotestsrc, with the memory NVMM in their
caps only. The properties are those that ``gst-inspect-1.0`` prints on a Jetson for
nvarguscamerasrc, nvvidconv, nvv4l2decoder and nvjpegdec, as far as ``launch`` sets them. Importing
this module registers the elements in this process; so it is used in a process of its own.
"""

# ruff: noqa: RUF012 - PyGObject reads class attributes
import ctypes
import itertools
import time

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GObject, Gst  # noqa: E402

Gst.init(None)  # before the classes
RW = GObject.ParamFlags.READWRITE


def integer(low, high, default):
    return (int, "", "", low, high, default, RW)


def number(low, high, default):
    return (float, "", "", low, high, default, RW)


def boolean(default):
    return (bool, "", "", default, RW)


TEXT = (str, "", "", None, RW)


class Stored(Gst.Bin):
    """A bin whose properties are kept in ``values``."""

    __gstmetadata__ = ("stored", "Generic", "stand-in", "y7edge")

    def __init__(self):
        super().__init__()
        self.values = {}

    def do_set_property(self, pspec, value):
        self.values[pspec.name] = value
        self.changed(pspec.name, value)

    def do_get_property(self, pspec):
        return self.values.get(pspec.name, pspec.default_value)

    def changed(self, name, value):
        """React to a property."""

    def chain(self, *elements, sink=True):
        """Fill the bin with elements, linked one after the other, of which the ends get pads."""
        for element in elements:
            self.add(element)
        for one, other in itertools.pairwise(elements):
            one.link_pads("src", other, "sink")
        if sink:
            self.add_pad(Gst.GhostPad.new("sink", elements[0].get_static_pad("sink")))
        self.add_pad(Gst.GhostPad.new("src", elements[-1].get_static_pad("src")))


class Cast(Gst.Element):
    """Copies buffers, and says that they are in another memory."""

    __gstmetadata__ = ("cast", "Generic", "stand-in", "y7edge")

    def __init__(self, memory, reads="video/x-raw(ANY)"):
        super().__init__()
        self.caps = Gst.Caps.from_string(f"video/x-raw{memory}, format=NV12")
        self.memory = memory
        self.reads = Gst.Caps.from_string(reads)
        self.sink = Gst.Pad.new("sink", Gst.PadDirection.SINK)
        self.sink.set_chain_function_full(self.on_buffer)
        self.sink.set_event_function_full(self.on_event)
        self.sink.set_query_function_full(self.on_query)
        self.src = Gst.Pad.new("src", Gst.PadDirection.SRC)
        self.src.set_query_function_full(self.on_query)
        self.add_pad(self.sink)
        self.add_pad(self.src)

    def on_buffer(self, pad, parent, buffer):
        return self.src.push(buffer.copy_deep())  # new buffers, as of nvvidconv

    def on_event(self, pad, parent, event):
        if event.type != Gst.EventType.CAPS:
            return pad.event_default(parent, event)
        text = event.parse_caps().to_string().replace("(memory:NVMM)", "")
        text = text.replace("video/x-raw", f"video/x-raw{self.memory}", 1)
        return self.src.push_event(Gst.Event.new_caps(Gst.Caps.from_string(text)))

    def on_query(self, pad, parent, query):
        if query.type == Gst.QueryType.ALLOCATION:
            return False
        if query.type == Gst.QueryType.ACCEPT_CAPS:
            query.set_accept_caps_result(True)
            return True
        if query.type == Gst.QueryType.CAPS:
            query.set_caps_result(self.caps if pad == self.src else self.reads)
            return True
        return pad.query_default(parent, query)


def make(name, **values):
    element = Gst.ElementFactory.make(name)
    for key, value in values.items():
        element.set_property(key.replace("_", "-"), value)
    return element


class AuxData(ctypes.Structure):
    """What nvarguscamerasrc attaches to its buffers."""

    _fields_ = (
        ("frame_num", ctypes.c_int64),
        ("timestamp", ctypes.c_int64),
        ("sensor_data", ctypes.c_void_p),
    )


EXPOSED_NS = 7_000_000  # before the buffer leaves the source
attached: list[AuxData] = []
with_metadata = True


def attach(buffer, timestamp):
    """Attach a sensor's time to a buffer, as nvarguscamerasrc does."""
    gst, glib = ctypes.CDLL("libgstreamer-1.0.so.0"), ctypes.CDLL("libglib-2.0.so.0")
    quark = glib.g_quark_from_string(b"GstBufferMetaData")
    attached.append(AuxData(len(attached), timestamp, None))
    gst.gst_mini_object_set_qdata(
        ctypes.c_void_p(hash(buffer)), ctypes.c_uint32(quark), ctypes.byref(attached[-1]), None
    )


class Argus(Stored):
    __gstmetadata__ = ("nvarguscamerasrc", "Source/Video", "stand-in", "y7edge")
    __gproperties__ = {
        "sensor-id": integer(0, 255, 0),
        "sensor-mode": integer(-1, 255, -1),
        "exposuretimerange": TEXT,
        "gainrange": TEXT,
        "ispdigitalgainrange": TEXT,
        "exposurecompensation": number(-2, 2, 0),
        "wbmode": integer(0, 9, 1),
        "aelock": boolean(False),
        "awblock": boolean(False),
        "aeantibanding": integer(0, 3, 1),
        "tnr-mode": integer(0, 2, 1),
        "tnr-strength": number(-1, 1, -1),
        "ee-mode": integer(0, 2, 1),
        "ee-strength": number(-1, 1, -1),
        "saturation": number(0, 2, 1),
    }

    def __init__(self):
        super().__init__()
        self.asked = make("capsfilter", caps=Gst.Caps.from_string("video/x-raw, format=NV12"))
        camera = make("videotestsrc", is_live=True)
        self.chain(camera, self.asked, Cast("(memory:NVMM)"), sink=False)
        pad = self.get_static_pad("src")
        pad.add_probe(Gst.PadProbeType.BUFFER, self.on_buffer)
        pad.connect("linked", self.on_linked)

    def on_linked(self, pad, peer):
        """Make what the capsfilter behind the source asks for."""
        text = peer.query_caps(None).to_string().replace("(memory:NVMM)", "")
        self.asked.set_property("caps", Gst.Caps.from_string(text))

    def on_buffer(self, pad, info):
        if with_metadata:
            attach(info.get_buffer(), time.monotonic_ns() - EXPOSED_NS)
        return Gst.PadProbeReturn.OK


class VidConv(Stored):
    __gstmetadata__ = ("nvvidconv", "Filter/Converter/Video", "stand-in", "y7edge")
    __gproperties__ = {"flip-method": integer(0, 7, 0)}
    DIRECTIONS = (0, 3, 2, 1, 4, 7, 5, 6)  # of videoflip, by flip-method

    def __init__(self):
        super().__init__()
        self.flip = make("videoflip")
        self.chain(Cast(""), make("videoconvert"), make("videoscale"), self.flip)

    def changed(self, name, value):
        self.flip.set_property("video-direction", self.DIRECTIONS[value])


class Decoder(Stored):
    __gstmetadata__ = ("nvv4l2decoder", "Codec/Decoder/Video", "stand-in", "y7edge")
    __gproperties__ = {
        "enable-max-performance": boolean(False),
        "disable-dpb": boolean(False),
        "mjpeg": boolean(False),
    }

    def __init__(self):
        super().__init__()
        self.chain(Cast("(memory:NVMM)", "ANY"))


class JpegDecoder(Stored):
    __gstmetadata__ = ("nvjpegdec", "Codec/Decoder/Image", "stand-in", "y7edge")

    def __init__(self):
        super().__init__()
        self.chain(make("jpegdec"))


def register(*without):
    """Register the elements, except those in ``without``."""
    elements = {
        "nvarguscamerasrc": Argus,
        "nvvidconv": VidConv,
        "nvv4l2decoder": Decoder,
        "nvjpegdec": JpegDecoder,
    }
    for name, element in elements.items():
        if name not in without:
            assert Gst.Element.register(None, name, Gst.Rank.NONE, GObject.type_register(element))
