"""Random labels and detections, to evaluate."""

import numpy as np


def random_boxes(rng, count):
    return np.hstack((rng.uniform(0, 300, (count, 2)), rng.uniform(5, 150, (count, 2))))


def random_tables(seed, images=12, classes=4, labels=60, found=400, unlabelled=(), crowds=0.0):
    """Return random labels, and detections that are partly shifted labels, partly noise."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, labels)
    used = [index for index in range(classes) if index not in unlabelled]
    image = rng.integers(images, size=labels)
    crowd = rng.random(labels) < crowds
    truth = np.column_stack((image, rng.choice(used, labels), boxes, crowd))
    near = rng.integers(labels, size=found)
    shaken = truth[near, 2:6] + rng.normal(0, 6, (found, 4))
    noise = rng.random(found) < 0.3
    shaken[noise] = random_boxes(rng, int(noise.sum()))
    shaken[:, 2:] = np.maximum(shaken[:, 2:], 1)
    class_id = np.where(rng.random(found) < 0.1, rng.integers(classes, size=found), truth[near, 1])
    return truth, np.column_stack((truth[near, 0], shaken, rng.random(found), class_id))
