"""Random changes of training images and their labels; `pipeline` applies them in order."""
