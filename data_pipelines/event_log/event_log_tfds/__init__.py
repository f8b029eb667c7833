"""The TensorFlow Datasets builder of event logs; it needs no TensorFlow."""
