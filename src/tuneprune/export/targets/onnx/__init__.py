"""ONNX files: a model as one graph with its key/value cache among the inputs and outputs."""
