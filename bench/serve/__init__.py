"""The model server beside its peers, and beside TensorFlow itself: `python -m bench.serve --help`."""
