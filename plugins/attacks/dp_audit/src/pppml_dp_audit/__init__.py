"""One-run audit of differential privacy with gradient canaries; see README.md."""
