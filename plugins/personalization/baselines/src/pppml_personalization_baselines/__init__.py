"""Baselines of personalized federated learning: fine-tuning, FedProx, FedBN, Ditto, FedPer, FedRep, APFL."""
