"""The session that runs a checkpoint in torch."""

import numpy as np
import torch

from y7edge.nn.build import from_checkpoint
from y7edge.nn.eager import EagerSession, describe
from y7edge.runtimes.base import SessionOptions


def test_convolutions_run_in_cudnn_without_tf32(narrow_tiny, monkeypatch):
    model = from_checkpoint(narrow_tiny)
    session = EagerSession(model, describe(narrow_tiny, (64, 96)), SessionOptions("cpu"))
    heads, seen, cudnn = model.heads, [], torch.backends.cudnn

    def recorded(images):
        seen.append((cudnn.enabled, cudnn.allow_tf32))
        return heads(images)

    monkeypatch.setattr(model, "heads", recorded)
    for enabled in (True, False):
        with cudnn.flags(enabled=enabled):
            session.infer({"images": np.zeros((1, 3, 64, 96), np.float32)})
    assert seen == [(True, False), (False, False)]
