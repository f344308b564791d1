"""ONNX files: a model as one graph that takes and gives its key/value cache, and the program that proves it."""
