"""Differential privacy for pppml: clipped and noised gradients or updates, with accounting over the whole run."""
