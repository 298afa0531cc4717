"""Per-FedAvg: a start from which every site adapts well in a few gradient steps."""
