"""What computing a gradient must leave as it was, in the network and in torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def buffers_kept(model: torch.nn.Module) -> Iterator[None]:
    """Put back what a forward pass changes in buffers: a layer's own statistics would carry images to other images, unclipped."""
    before = {name: (buffer, buffer.detach().clone()) for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in before and buffer is before[name][0]:
                    buffer.copy_(before[name][1])
                elif name in before:  # another tensor was put in its place
                    _owner(model, name)._buffers[name.rpartition(".")[2]] = before[name][0].copy_(before[name][1])


def _owner(model: torch.nn.Module, name: str) -> torch.nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


@contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32, which torch allows in convolutions on a GPU: norms, weighted sums and comparisons count on float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def untouched(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Random numbers and buffers are afterwards as they were before."""
    with buffers_kept(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
