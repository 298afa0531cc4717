"""Per-FedAvg: shared weights from which every site gets a good model in one step of gradient descent on its own data."""
