"""Options of cameras and streams."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from y7edge.errors import ConfigError
from y7edge.sources.options import FLIPS, OPTIONS, SCHEMES, check_options


def test_names_of_jetson_inference():
    options = {
        **{"input-width": "1280", "input_height": "720", "input-rate": "30"},
        **{"flip-method": "rotate-180", "sensor-mode": "2"},
    }
    assert check_options("csi", options) == {
        **{"width": 1280, "height": 720, "rate": Fraction(30)},
        **{"flip": "rotate-180", "sensor_mode": 2},
    }
    stream = {"input-rtsp-latency": "10", "input-codec": "h265", "input-decoder": "v4l2"}
    assert check_options("rtsp", stream) == {"latency": 10, "codec": "h265", "decoder": "v4l2"}


def test_names_of_nvarguscamerasrc():
    options = {
        **{"exposuretimerange": "34000 358733000", "gainrange": '"1 16"'},
        **{"ispdigitalgainrange": "1,8", "wbmode": 1, "aelock": True, "tnr-mode": "2"},
    }
    assert check_options("csi", options) == {
        **{"exposure": (34000, 358733000), "gain": (1, 16), "digital_gain": (1, 8)},
        **{"wbmode": 1, "aelock": True, "tnr_mode": 2},
    }


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        *(("30", 30), ("29.97", Fraction(30000, 1001)), ("59.94", Fraction(60000, 1001))),
        *(
            ("30000/1001", Fraction(30000, 1001)),
            ("12.5", Fraction(25, 2)),
            ("0.5", Fraction(1, 2)),
        ),
        *(("23.976", Fraction(24000, 1001)), (30.0, 30)),
    ],
)
def test_rates(text, rate):
    assert check_options("csi", {"fps": text}) == {"rate": rate}


@pytest.mark.parametrize("number", range(8))
def test_flips_by_number(number):
    assert check_options("v4l2", {"flip": number}) == {"flip": FLIPS[number]}


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("csi", {"widht": 5}, "csi has no option 'widht', did you mean 'width'?"),
        ("csi", {"latency": 5}, "csi has no option latency, expected "),
        ("gst", {"width": 5}, "gst has no option width, expected backend, format"),
        ("csi", {"width": "1e3"}, "option width is '1e3', expected an integer from 16 to 16384"),
        ("csi", {"width": "17000"}, "option width is '17000', expected an integer from 16 to"),
        ("csi", {"width": "९९"}, "option width is '९९', expected an integer"),
        ("csi", {"fps": "0"}, "option fps is '0', expected frames per second from 1/60 to 1000"),
        ("csi", {"fps": "30/0"}, "option fps is '30/0', expected frames per second"),
        ("csi", {"fps": "nan"}, "option fps is 'nan', expected frames per second"),
        ("csi", {"saturation": "nan"}, "option saturation is 'nan', expected a number from 0 to 2"),
        ("csi", {"exposure": "9,5"}, "option exposure is '9,5', expected LOW,HIGH or one number"),
        ("csi", {"gain": "1,2,3"}, "option gain is '1,2,3', expected LOW,HIGH"),
        ("csi", {"flip": "up"}, "option flip is 'up', expected one of none, counterclockwise, "),
        ("csi", {"aelock": "maybe"}, "option aelock is 'maybe', expected true or false"),
        ("csi", {"rate": 30, "fps": 30}, "option fps is given twice, also as rate"),
        ("v4l2", {"codec": "x264"}, "option codec is 'x264', expected one of h264, h265, "),
        (
            "rtsp",
            {"num-buffers": 4},
            "rtsp has no option num-buffers: live sources keep the newest",
        ),
        ("rtsp", {"transport": "tcp ! filesink"}, "option transport is 'tcp ! filesink', expected"),
    ],
)
def test_messages(scheme, options, message):
    with pytest.raises(ConfigError) as caught:
        check_options(scheme, options)
    assert str(caught.value).startswith(message)


@given(st.sampled_from(SCHEMES), st.sampled_from([*OPTIONS, "x"]), st.text(max_size=30))
def test_any_text_is_a_value_or_an_error(scheme, name, text):
    try:
        value = check_options(scheme, {name: text})[name]
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(value, int | float | Fraction | tuple) or value.replace("-", "").isalnum()
