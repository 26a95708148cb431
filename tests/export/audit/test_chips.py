"""Tables of chips: those of the package, and tables of strangers."""

from __future__ import annotations

import pytest

from y7edge.errors import ConfigError
from y7edge.export.audit import chips
from y7edge.export.audit.chips import Limit, load

GOOD = """\
title: Example X1
vendor: Example
source: Example SDK 2.1, operator list (2026-03)
others: cpu
operations:
  Conv: {limits: {kernel: {max: 7}, stride: {among: [1, 2]}}}
  LeakyRelu: {verdict: refused, why: no such operator}
  MaxPool: [{limits: {kernel: {max: 3}}}, {verdict: cpu, why: only 3x3 windows}]
"""

EXPECTED = {
    *("kl520", "kl720", "kl530", "kl630", "kl730"),
    *("hailo8", "hailo8l", "hailo10h", "hailo15h", "hailo15l"),
    *("rk3562", "rk3566", "rk3568", "rk3576", "rk3588", "rv1103", "rv1106", "rv1126b", "rk2118"),
    *("ethos-u55", "ethos-u65", "ethos-u85", "edgetpu", "mdla2.0", "mediatek-npu"),
    *("htp-v68", "htp-v69", "htp-v73", "htp-v75", "htp-v79", "htp-v81", "apple-ane"),
    *("intel-npu3720", "intel-npu4000", "intel-npu5010"),
    *("am62a", "am67a", "am68a", "am69a", "tda4vm", "rzv2h", "rzv2l"),
    *("bm1684", "bm1684x", "bm1688", "k230", "k210", "dpu", "ryzenai"),
    *("imx8mp", "imx93", "imx95-neutron", "artpec-7", "artpec-8", "artpec-9", "cv25"),
    *("rvc2", "rvc4", "stm32n6", "orin-dla"),
}


def written(tmp_path, text, name="x1.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_all_chips_have_a_table() -> None:
    assert set(chips.names()) >= EXPECTED


@pytest.mark.parametrize("name", chips.names())
def test_tables_of_the_package(name: str) -> None:
    """Each table is valid, names its document, and gives a reason for each refusal."""
    chip = load(name)
    assert chip.name == name
    assert len(chip.source) > 20
    if chip.others != "runs":
        assert chip.others_why
    for rules in chip.operations.values():
        for rule in rules:
            assert rule.verdict == "runs" or rule.why


@pytest.mark.parametrize("name", chips.names())
def test_targets_of_chips_have_their_options(name: str) -> None:
    from y7edge.export.targets import registry

    chip = load(name)
    if chip.target is None or chip.target not in registry.names():
        return
    assert set(chip.options) <= set(registry.get(chip.target).OPTIONS)


def test_a_table_of_the_user(tmp_path) -> None:
    chip = load(str(written(tmp_path, GOOD)))
    assert (chip.name, chip.title, chip.others) == ("x1", "Example X1", "cpu")
    (conv,) = chip.operations["Conv"]
    assert conv.limits["kernel"] == Limit(max=7)
    assert [rule.verdict for rule in chip.operations["MaxPool"]] == ["runs", "cpu"]
    assert load("x1", tmp_path) == chip
    assert chips.names(tmp_path) == ["x1"]


def test_a_table_like_another(tmp_path) -> None:
    written(tmp_path, GOOD)
    path = written(tmp_path, "like: x1\ntitle: Example X2\noperations: {Conv: {}}\n", "x2.yaml")
    chip = load(str(path))
    assert (chip.name, chip.title, chip.vendor) == ("x2", "Example X2", "Example")
    assert not chip.operations["Conv"][0].limits
    assert chip.operations["LeakyRelu"] == load("x1", tmp_path).operations["LeakyRelu"]


BAD = {
    "not a mapping": ("- 1\n", "expected the table of a chip"),
    "not YAML": ("{", "not YAML"),
    "unknown entry": (GOOD + "colour: red\n", "there is no 'colour'"),
    "given twice": (GOOD + "others: refused\n", "'others' is given twice"),
    "no source": (GOOD.replace("source: Example SDK 2.1, operator list (2026-03)\n", ""), "source"),
    "empty title": (GOOD.replace("Example X1", "''"), "title is empty"),
    "unknown verdict": (GOOD.replace("others: cpu", "others: maybe"), "others: expected 'runs'"),
    "unknown fact": (GOOD.replace("kernel: {max: 7}", "kernal: {max: 7}"), "did you mean 'kernel'"),
    "no limit": (GOOD.replace("{max: 7}", "{}"), "expected min, max, among or multiple"),
    "wrong type": (GOOD.replace("max: 7", "max: seven"), "operations.Conv[0].limits.kernel.max"),
    "not finite": (GOOD.replace("max: 7", "max: .nan"), "operations.Conv[0].limits.kernel.max"),
    "empty among": (GOOD.replace("[1, 2]", "[]"), "among is empty"),
    "impossible": (GOOD.replace("{max: 7}", "{min: 8, max: 7}"), "min 8 is larger than max 7"),
    "multiple of 0": (GOOD.replace("{max: 7}", "{multiple: 0}"), "multiple is 0"),
    "no reason": (GOOD.replace(", why: no such operator", ""), "expected a reason"),
    "operator": (GOOD.replace("LeakyRelu:", "'Leaky\\u0020Relu':"), "is not an operator"),
    "no rules": (
        GOOD.replace("{verdict: refused, why: no such operator}", "[]"),
        "is not an operator",
    ),
    "escape": (GOOD.replace("Example X1", '"X\\e[2J"'), "expected printable texts"),
    "long": (GOOD.replace("Example X1", "X" * 1000), "at most 600 characters"),
    "name": (GOOD + "name: other\n", "remove the entry name"),
    "opsets": (GOOD + "opsets: [18, 8]\n", "opsets are (18, 8)"),
    "memory": (GOOD + "memory: {parameters: 0}\n", "memory.parameters is 0"),
    "memory's limit": (GOOD + "memory: {parameters: 9, most: 8}\n", "memory.most is 8"),
    "options": (GOOD + "options: {chip: x1}\n", "options, but no target"),
    "built in": (GOOD + "built_in: [leaky]\n", "no rewrite 'leaky', did you mean 'leaky-max'?"),
    "input": (GOOD + "input: [{limits: {kernel: {max: 3}}}]\n", "side and batch only"),
    "tag": (GOOD + "remarks: !!python/object:os.system [ls]\n", "is not supported"),
    "aliases": ("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(3)), "no 'a'"),
    "like a path": ("like: ../../etc/x\n", "expected the name of a table"),
    "like nothing": ("like: absent\n", "there is no absent.yaml"),
    "like itself": ("like: x1\n", "which is itself like"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_invalid_tables(text: str, message: str, tmp_path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(str(path))
    words = str(error.value)
    assert words.startswith(str(path))
    assert message in words
    assert "\n" not in words


def test_names_that_are_no_chip(tmp_path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'kl520'"):
        load("kl52")
    with pytest.raises(ConfigError, match="no such file"):
        load(str(tmp_path / "absent.yaml"))
    with pytest.raises(ConfigError, match="found none"):
        chips.names(tmp_path)
    with pytest.raises(ConfigError, match="cannot list"):
        chips.names(tmp_path / "absent")
    with pytest.raises(ConfigError, match="expected a name of lower-case letters"):
        load(str(written(tmp_path, GOOD, "X 1.yaml")))


def test_limits() -> None:
    assert Limit(max=7).holds(7)
    assert not Limit(max=7).holds(8)
    assert Limit(among=("nearest", 2.0)).holds("nearest")
    assert not Limit(among=("nearest",)).holds("linear")
    assert not Limit(max=7).holds("nearest")
    assert Limit(multiple=16).holds(48)
    assert not Limit(multiple=16).holds(3)
    assert str(Limit(min=1, max=2, multiple=2)) == "at least 1, at most 2, a multiple of 2"
