"""Flower's SecAgg+ driven in this process: its own client code, and its server's arithmetic, without network and serialization of messages.

A client's steps are the functions of Flower's client mod as they are (``flwr/client/mod/secure_aggregation/secaggplus_mod.py``); the
server's unmasking follows ``unmask_stage`` of ``secaggplus_workflow.py`` line by line up to the summed integers. Both have less to do than
in a run: no records, no messages, no strategy. Settings are the workflow's defaults; the threshold is half of the shares, which is
cheaper than two thirds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

CLIPPING, LEVELS, MODULUS, MAX_WEIGHT = 8.0, 4_194_304, 4_294_967_296, 1000.0


class FlowerSecAgg:
    """All clients of one aggregation over a complete graph, brought up to the masked vectors.

    Args:
        clients: how many, each with a share for every one (``num_shares`` = clients).
        vector: what each client contributes, float32 of shape ``(d,)``.

    Raises ImportError where Flower is not installed, and AttributeError or TypeError where its inside has changed.
    """

    def __init__(self, clients: int, vector: np.ndarray) -> None:
        self.mod = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
        self.parts = import_module("flwr.common.secure_aggregation.secaggplus_utils")
        self.shamir = import_module("flwr.common.secure_aggregation.crypto.shamir")
        self.arithmetic = import_module("flwr.common.secure_aggregation.ndarrays_arithmetic")
        self.arrays = import_module("flwr.common")
        self.version = import_module("flwr").__version__
        self.parameters = self.arrays.ndarrays_to_parameters([vector])
        key = self.mod.Key
        settings = {
            key.SAMPLE_NUMBER: clients,
            key.SHARE_NUMBER: clients,
            key.THRESHOLD: (clients + 1) // 2,
            key.CLIPPING_RANGE: CLIPPING,
            key.TARGET_RANGE: LEVELS,
            key.MOD_RANGE: MODULUS,
            key.MAX_WEIGHT: MAX_WEIGHT,
        }
        self.nodes = list(range(1, clients + 1))
        self.states = {node: self.mod.SecAggPlusState(nid=node) for node in self.nodes}
        keys = {node: self.mod._setup(self.states[node], dict(settings)) for node in self.nodes}
        self.public = {node: (keys[node][key.PUBLIC_KEY_1], keys[node][key.PUBLIC_KEY_2]) for node in self.nodes}
        boxes: dict[int, dict[int, bytes]] = {node: {} for node in self.nodes}
        for node in self.nodes:
            sent = self.share_keys(node)
            for target, box in zip(sent[key.DESTINATION_LIST], sent[key.CIPHERTEXT_LIST], strict=True):
                boxes[target][node] = box
        self.boxes = boxes

    def share_keys(self, node: int) -> Any:
        """What a client does in the second exchange."""
        return self.mod._share_keys(self.states[node], {str(peer): list(pair) for peer, pair in self.public.items()})

    def mask(self, node: int) -> list[bytes]:
        """What a client does in the third exchange, training excluded: quantized, masked, serialized."""
        key = self.mod.Key
        received = {key.CIPHERTEXT_LIST: list(self.boxes[node].values()), key.SOURCE_LIST: list(self.boxes[node])}
        sent = self.mod._collect_masked_vectors(self.states[node], received, 500, self.parameters)
        return sent[key.MASKED_PARAMETERS]

    def collected(self, masked: list[bytes], dead: int) -> Collected:
        """What the server holds before it unmasks, the last ``dead`` clients having vanished; all masked vectors count as ``masked``."""
        alive, gone = self.nodes[: len(self.nodes) - dead], self.nodes[len(self.nodes) - dead :]
        for node in alive:
            self.mask(node)  # takes in the shares of the others
        key, shares = self.mod.Key, dict[int, list[bytes]]({node: [] for node in self.nodes})
        for node in alive:
            sent = self.mod._unmask(self.states[node], {key.ACTIVE_NODE_ID_LIST: alive, key.DEAD_NODE_ID_LIST: gone})
            for owner, share in zip(sent[key.NODE_ID_LIST], sent[key.SHARE_LIST], strict=True):
                shares[owner].append(share)
        total = [self.arrays.bytes_to_ndarray(part) for part in masked]
        return Collected(self, total, shares, set(alive))


class Collected:
    """The server before unmasking."""

    def __init__(self, run: FlowerSecAgg, total: list[np.ndarray], shares: dict[int, list[bytes]], alive: set[int]) -> None:
        self.run, self.total, self.shares, self.alive = run, total, shares, alive

    def unmask(self) -> list[np.ndarray]:
        """The summed integers."""
        run = self.run
        expand, add, take = run.parts.pseudo_rand_gen, run.arithmetic.parameters_addition, run.arithmetic.parameters_subtraction
        agree = run.mod.generate_shared_key
        total = self.total
        shapes = run.arithmetic.get_parameters_shape(total)
        for node, shares in self.shares.items():
            secret = run.shamir.combine_shares(shares)
            if node in self.alive:
                total = take(total, expand(secret, MODULUS, shapes))
                continue
            for peer in run.nodes:
                if peer != node:
                    key = agree(run.mod.bytes_to_private_key(secret), run.mod.bytes_to_public_key(run.public[peer][0]))
                    total = (add if node > peer else take)(total, expand(key, MODULUS, shapes))
        return run.arithmetic.parameters_mod(total, MODULUS)
