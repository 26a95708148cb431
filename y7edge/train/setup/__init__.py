"""Everything a run needs before the first step: model, weights, anchors, data, optimizer."""
