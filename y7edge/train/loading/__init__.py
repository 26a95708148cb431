"""Load batches of training images: `dataset` combines order, cache and loading processes."""
