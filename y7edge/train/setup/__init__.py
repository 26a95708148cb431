"""What a run begins with: device, data, model, weights, anchors, frozen rows."""
