"""States of a run: damaged and malformed ones are refused, and the previous one is used."""

import errno
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import load_file, save_file

from y7edge.errors import CheckpointError, TrainingError
from y7edge.train.averaging.average import Counts
from y7edge.train.output.results import EpochRow, Written
from y7edge.train.run import state
from y7edge.train.run.state import PREVIOUS, STATE, Began, Facts, Identity, Position, State

IDENTITY = Identity({"imgsz": 64}, "1234", "2.0", 1, 1, "cpu", "x86_64")
BEGAN = Began("random weights", ("a note",), (((1.5, 2.5), (3.0, 4.0)),))


def some(epoch, batch=2):
    rows = tuple(EpochRow(e, 0.1, 0.2, 1 / 3, 0.01, 1.0, 2.0) for e in range(1, epoch))
    evaluated = tuple(replace(row, map50=0.5, map50_95=0.25) for row in rows)
    facts = Facts(
        Position(epoch, batch, sums=(0.1, 0.2, 1 / 3), seconds=1.25),
        IDENTITY,
        began=BEGAN,
        average=Counts(3, 0, 1),
        scaler={"scale": 65536.0, "growth_interval": 2000},
        gathered=2,
        written=Written(evaluated, 0.25, ("000.jpg", "closed.jpg")),
    )
    made = State(facts)
    made.put("model", {"weight": torch.full((2, 3), float(epoch)), "count": torch.tensor(epoch)})
    return made


def load(folder, log=pytest.fail):
    return state.load(folder, lambda found: found, log=log)


def test_state_round_trip(tmp_path):
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    before = some(2)
    before.put("optimizer.10", {"momentum_buffer": image})
    before.put("optimizer.1", {"momentum_buffer": torch.zeros(0), "flags": torch.tensor([True])})
    state.save(before, tmp_path)
    after = load(tmp_path)
    assert after.facts == before.facts
    assert [type(value) for value in after.facts.scaler.values()] == [float, int]
    assert torch.equal(after.take("optimizer.10")["momentum_buffer"], image)
    assert set(after.take("optimizer.1")) == {"momentum_buffer", "flags"}  # not those of 10
    assert after.take("model")["count"].dtype == torch.int64


def test_the_previous_state_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        state.save(some(epoch), tmp_path)
    found = [state.read(tmp_path / name).facts.position.epoch for name in (STATE, PREVIOUS)]
    assert found == [3, 2]


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flipped(path):
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])


def digit_of_a_fact(path):
    content = path.read_bytes()
    assert content.count(b"1.25") == 1
    path.write_bytes(content.replace(b"1.25", b"1.35"))


def text_of_a_fact(path):
    content = path.read_bytes()
    assert content.count(b"closed.jpg") == 1
    path.write_bytes(content.replace(b"closed.jpg", b"/etc/host0"))


def type_of_an_array(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"dtype":"F32"', b'"dtype":"I32"'))


def shape_of_an_array(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"[2,3]", b"[3,2]"))


def empty(path):
    path.write_bytes(b"")


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def another_tools(path):
    save_file({"a": np.zeros(1)}, path)


def another_schema(path):
    rewrite(path, lambda header: header.update(schema=3))


def nested(path):
    with_text(path, "[" * 100_000)


def no_json(path):
    with_text(path, "{")


def a_list(path):
    with_text(path, "[1]")


def rewrite(path, change):
    """Change the header of a state, with a correct checksum."""
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[state.HEADER])
    change(header)
    with_text(path, json.dumps(header))


def with_text(path, text):
    arrays = load_file(path)
    checksum = str(state._checksum(text, arrays))
    save_file(arrays, path, metadata={state.HEADER: text, state.CHECKSUM: checksum})


DAMAGES = [
    *(cut, flipped, digit_of_a_fact, text_of_a_fact, type_of_an_array, shape_of_an_array, empty),
    *(another_tools, another_schema, nested, no_json, a_list, a_pipe),
]


@pytest.mark.parametrize("damage", [*DAMAGES, os.unlink, a_folder])
def test_damaged_state_is_replaced_by_the_previous_one(tmp_path, damage):
    state.save(some(1), tmp_path)
    state.save(some(2), tmp_path)
    damage(tmp_path / STATE)
    lines = []
    assert load(tmp_path, lines.append).facts.position.epoch == 1
    if damage in DAMAGES:
        assert len(lines) == 1
        assert f"resuming from {PREVIOUS} (epoch 1, after 2 batches)" in lines[0]
    if damage is a_folder:
        return
    # The next write must not replace the complete file by the damaged one.
    state.save(some(3), tmp_path)
    assert state.read(tmp_path / PREVIOUS).facts.position.epoch == 1


def places(value, path=()):
    """Paths to all entries of nested JSON values."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def spoil(header, path, bad):
    place = header
    for key in path[:-1]:
        place = place[key]
    if bad is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = bad


FACTS = json.loads(json.dumps(asdict(some(2).facts)))
OPEN = {("identity", "settings"), ("scaler",)}  # these hold names of any kind
BAD = [None, "x", "../../x", -1, -1.5, float("nan"), float("inf"), 10**400, [], {}, [1], KeyError]


@pytest.mark.parametrize("path", list(places(FACTS)), ids=lambda path: ".".join(map(str, path)))
def test_malformed_facts_are_refused(tmp_path, path):
    """Replace each fact by values of other types: it is refused, or has the right type."""
    state.save(some(2), tmp_path)
    whole = (tmp_path / STATE).read_bytes()
    refused = 0
    for bad in BAD:
        (tmp_path / STATE).write_bytes(whole)
        rewrite(tmp_path / STATE, lambda header, bad=bad: spoil(header["facts"], path, bad))
        try:
            found = state.read(tmp_path / STATE).facts
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"{tmp_path / STATE}: ")
            assert "\n" not in str(error)
        else:
            # A state that was read can be written again.
            assert state.decode(Facts, asdict(found), origin="", error=CheckpointError) == found
    assert refused >= 5 or any(path[: len(place)] == place for place in OPEN)


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (("position", "epoch"), 0),
        (("position", "batch"), -1),
        (("position", "sums"), [0.0, 0.0]),
        (("position", "sums"), [0.0, 0.0, float("nan")]),
        (("position", "seconds"), -1.0),
        (("gathered",), 2**40),
        (("average", "updates"), 10**30),
        (("began",), None),
        (("written", "batches"), ["../../../etc/hostname"]),
        (("written", "batches"), ["/etc/hostname"]),
        (("written", "batches"), ["000.jpg", "000.jpg"]),
        (("written", "rows", 0, "epoch"), 7),
        (("written", "rows", 0, "map50"), None),
        (("written", "conf"), 1.5),
        (("unknown",), 1),
    ],
)
def test_impossible_facts_are_refused(tmp_path, path, bad):
    state.save(some(1), tmp_path)
    state.save(some(2), tmp_path)
    rewrite(tmp_path / STATE, lambda header: spoil(header["facts"], path, bad))
    lines = []
    assert load(tmp_path, lines.append).facts.position.epoch == 1
    assert len(lines) == 1


def test_state_that_does_not_fit_is_skipped(tmp_path):
    state.save(some(1), tmp_path)
    state.save(some(2), tmp_path)

    def use(found):
        if found.facts.position.epoch == 2:
            raise CheckpointError("does not fit")
        return found

    lines = []
    assert state.load(tmp_path, use, log=lines.append).facts.position.epoch == 1
    assert lines[0].startswith("does not fit; resuming from")
    assert not (tmp_path / STATE).exists()


def test_message_names_the_usable_weights(tmp_path):
    state.save(some(1), tmp_path)
    cut(tmp_path / STATE)
    with pytest.raises(CheckpointError, match="no weights of a finished epoch"):
        load(tmp_path)
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"truncated.*--weights .*last.safetensors"):
        load(tmp_path)


def test_full_disk_keeps_the_previous_state(tmp_path, monkeypatch):
    state.save(some(1), tmp_path)

    @contextmanager
    def full(path):
        yield tmp_path / "temporary"
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "atomic_write", full)
        with pytest.raises(
            TrainingError, match=r"the disk is full.*\(epoch 1, after 2 batches\) is in state"
        ):
            state.save(some(2), tmp_path)
    assert load(tmp_path).facts.position.epoch == 1


def test_finished_run_has_no_arrays(tmp_path):
    state.save(some(1), tmp_path)
    state.save(some(2), tmp_path)
    state.mark_finished(tmp_path, IDENTITY, 2)
    left = load(tmp_path)
    assert left.facts.finished is True
    assert left.facts.position.epoch == 2
    assert not left.arrays
    assert not (tmp_path / PREVIOUS).exists()
