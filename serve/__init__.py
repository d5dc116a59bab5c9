"""A TensorFlow Serving-compatible model server. Imports nothing from the rest of the house."""
