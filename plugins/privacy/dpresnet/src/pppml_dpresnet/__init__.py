"""Networks that differential privacy can train: examples independent of each other, no running statistics, nothing in place."""
