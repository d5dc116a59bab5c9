"""The spine: stages, records, store, policy. Knows no TensorFlow and no Docker."""
