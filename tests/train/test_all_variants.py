"""Every variant takes a training step: heads, assignment, loss, gradients, update."""

from __future__ import annotations

import pytest
import torch

from y7edge.models import registry
from y7edge.models.scaling import scale
from y7edge.nn.build import Model
from y7edge.train.loss.loss import TrainingLoss
from y7edge.train.settings.recipes import named_for

TARGETS = torch.tensor(
    [
        [0, 0, 0.3, 0.4, 0.2, 0.3],
        [0, 1, 0.7, 0.6, 0.5, 0.4],
        [0, 2, 0.2, 0.8, 0.06, 0.07],
        [1, 1, 0.5, 0.5, 0.9, 0.8],
        [1, 0, 0.62, 0.31, 0.11, 0.12],
    ]
)


@pytest.mark.parametrize("name", registry.names())
def test_step_updates_all_weights(name):
    torch.manual_seed(0)
    spec = scale(registry.get(name, nc=3), width=0.0625)
    size = 2 * spec.max_stride
    model = Model(spec).train()
    images = torch.rand(2, 3, size, size)
    loss = TrainingLoss(spec, model.head.anchors, named_for(name).recipe, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    heads = model(images)
    assert len(heads) == len(spec.head.inputs)
    assert len(model.head.aux) == len(spec.aux_inputs)
    loss(heads, TARGETS).total.backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None, f"{key} takes no part"
        assert weight.grad.isfinite().all(), key
        assert weight.grad.any(), f"{key} learns nothing"
    optimizer.step()
    assert loss(model(images), TARGETS).total.isfinite()


def test_p6_model_trains_without_auxiliary_head():
    torch.manual_seed(0)
    spec = registry.without_auxiliary(scale(registry.get("yolov7-w6", nc=3), width=0.0625))
    model = Model(spec).train()
    loss = TrainingLoss(spec, model.head.anchors, named_for("yolov7-w6").recipe, 128)
    heads = model(torch.rand(2, 3, 128, 128))
    assert len(heads) == 4
    loss(heads, TARGETS).total.backward()
    assert all(conv.weight.grad.any() for conv in model.head.lead)
