"""What a model shows on calibration data: activations, gradients, the residual stream, and scores of its units."""
