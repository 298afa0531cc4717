"""FedAvg written by hand in plain PyTorch: what the engine's overhead is measured against. At most 60 lines, and no framework."""

from __future__ import annotations

import copy

import torch


def fedavg_by_hand(model, sites, validation, loss, score, *, rounds, batch_size, lr, evaluate_batch=32):
    """``sites`` and ``validation``: name -> (images, targets) tensors. Returns the validation score of each round and site."""
    model.train()
    shared = {n: t.clone() for n, t in model.state_dict().items() if t.is_floating_point()}
    history = []
    for _ in range(rounds):
        total, summed = 0, {n: torch.zeros_like(t) for n, t in shared.items()}
        for images, targets in sites.values():
            model.load_state_dict(shared, strict=False)
            model.train()
            optimizer = torch.optim.Adam(model.parameters(), lr=lr)
            order = torch.randperm(len(images))
            for start in range(0, len(images), batch_size):
                picked = order[start : start + batch_size]
                optimizer.zero_grad(set_to_none=True)
                loss(model(images[picked]), targets[picked]).backward()
                optimizer.step()
            state = model.state_dict()
            total += len(images)
            for name, value in summed.items():
                value += (state[name] - shared[name]) * len(images)
        shared = {n: t + summed[n] / total for n, t in shared.items()}
        model.load_state_dict(shared, strict=False)
        model.eval()
        scores = {}
        with torch.no_grad():
            for name, (images, targets) in validation.items():
                parts = [images[i : i + evaluate_batch] for i in range(0, len(images), evaluate_batch)]
                probabilities = torch.cat([torch.softmax(model(part), dim=1) for part in parts])
                scores[name] = score(name, probabilities, targets)
        history.append(scores)
    return copy.deepcopy(shared), history
