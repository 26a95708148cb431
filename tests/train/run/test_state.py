"""The state of a run: complete or refused, with a previous one."""

import errno
from contextlib import contextmanager

import pytest
import torch

from y7edge.errors import CheckpointError, TrainingError
from y7edge.train.run import state
from y7edge.train.run.state import PREVIOUS, STATE, State


def some(epoch, batch=2):
    made = State({"epoch": epoch, "batch": batch, "writer": {"rows": []}})
    made.put("model", {"weight": torch.full((2, 3), float(epoch)), "count": torch.tensor(epoch)})
    return made


def test_state_comes_back_as_it_was(tmp_path):
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    before = some(1)
    before.put("optimizer.10", {"momentum_buffer": image})
    before.put("optimizer.1", {"momentum_buffer": torch.zeros(0), "flags": torch.tensor([True])})
    state.save(before, tmp_path)
    after = state.load(tmp_path, log=pytest.fail)
    assert after.facts == before.facts
    assert torch.equal(after.take("optimizer.10")["momentum_buffer"], image)
    assert set(after.take("optimizer.1")) == {"momentum_buffer", "flags"}  # not those of 10
    assert after.take("model")["count"].dtype == torch.int64


def test_the_previous_state_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        state.save(some(epoch), tmp_path)
    assert [state.read(tmp_path / name).facts["epoch"] for name in (STATE, PREVIOUS)] == [3, 2]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "missing"])
def test_damaged_state_gives_way_to_the_one_before(tmp_path, damage):
    state.save(some(1), tmp_path)
    state.save(some(2), tmp_path)
    spoil(tmp_path / STATE, damage)
    lines = []
    assert state.load(tmp_path, log=lines.append).facts["epoch"] == 1
    if damage != "missing":
        assert len(lines) == 1
        assert f"resuming from {PREVIOUS} (epoch 1, after 2 batches)" in lines[0]
    # The next write must not replace the complete file by the damaged one.
    state.save(some(3), tmp_path)
    assert state.read(tmp_path / PREVIOUS).facts["epoch"] == 1


def spoil(path, damage):
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    else:
        path.write_bytes(content[: -10 if damage == "cut" else 0])


def test_message_names_the_usable_weights(tmp_path):
    state.save(some(1), tmp_path)
    spoil(tmp_path / STATE, "cut")
    with pytest.raises(CheckpointError, match="nor weights of a finished epoch"):
        state.load(tmp_path, log=pytest.fail)
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"truncated.*--weights .*last.safetensors"):
        state.load(tmp_path, log=pytest.fail)


def test_full_disk_leaves_the_previous_state(tmp_path, monkeypatch):
    state.save(some(1), tmp_path)

    @contextmanager
    def full(path):
        yield tmp_path / "temporary"
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "atomic_write", full)
        with pytest.raises(
            TrainingError, match=r"No space left.*\(epoch 1, after 2 batches\) is in state"
        ):
            state.save(some(2), tmp_path)
    assert state.load(tmp_path, log=pytest.fail).facts["epoch"] == 1


def test_other_safetensors_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="not a complete state of a run"):
        state.load(tmp_path, log=pytest.fail)


def test_finished_run_leaves_no_arrays(tmp_path):
    state.save(some(1), tmp_path)
    state.save(some(2), tmp_path)
    state.mark_finished(tmp_path, {"data": "1234"}, 2)
    left = state.load(tmp_path, log=pytest.fail)
    assert left.facts["finished"] is True
    assert not left.arrays
    assert not (tmp_path / PREVIOUS).exists()
