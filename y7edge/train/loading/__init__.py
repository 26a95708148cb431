"""Load training images: order, cache and loading processes; `dataset` combines them."""
