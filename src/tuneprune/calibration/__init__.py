"""Measurements on calibration data: activations, gradients, the residual stream, and scores of units."""
