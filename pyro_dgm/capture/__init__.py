"""A function of tensors as one static graph: recorded, rewritten, verified.  Knows neither objectives nor kernels."""
