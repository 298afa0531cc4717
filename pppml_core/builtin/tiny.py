"""``tiny``: a synthetic task of a few small images per site, and ``tiny-net``, a network for it. For tests and first steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pppml_core.builtin.configs import TinyNetConfig, TinyTaskConfig
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import DataCard, SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.metrics import CLASSIFICATION_METRICS, SEGMENTATION_METRICS
from pppml_core.randomness import Seeds


class TinyTask(Task):
    """A bright square whose place is its class, under noise and a brightness that differs from site to site."""

    config: TinyTaskConfig

    def spec(self) -> TaskSpec:
        """Grey squares."""
        c = self.config
        segmentation = c.kind == "segmentation"
        classes = ("background", "square") if segmentation else tuple(f"place_{i}" for i in range(c.classes))
        return TaskSpec(
            kind=c.kind,
            channels=1,
            size=(c.size, c.size),
            classes=classes,
            model="tiny-net",
            primary_metric="dice" if segmentation else "accuracy",
            metrics=SEGMENTATION_METRICS if segmentation else CLASSIFICATION_METRICS,
            training={"batch_size": 8, "optimizer": {"use": "sgd", "lr": 0.05}},
        )

    def sites(self) -> tuple[SiteInfo, ...]:
        """``site_1`` to ``site_n``."""
        return tuple(SiteInfo(f"site_{i + 1}", f"Site {i + 1}") for i in range(self.config.sites))

    def load(self, site: str) -> SiteData:
        """Drawn anew on each call, always the same."""
        number = int(site.removeprefix("site_")) - 1
        parts = []
        for split, count in (("train", self.config.examples + number), ("validation", 6), ("test", 12)):
            generator = Seeds(self.config.data_seed).generator("tiny", site, split)
            labels = np.arange(count) % self.config.classes
            images = generator.normal(0.1 * (number % 5), 0.3, (count, 1, self.config.size, self.config.size)).astype(np.float32)
            masks = np.zeros((count, self.config.size, self.config.size), np.int64)
            for i, label in enumerate(labels):
                row, column = divmod(int(label) * 2, self.config.size)
                masks[i, row : row + 3, column : column + 2] = 1
                images[i, 0] += masks[i]
            targets = masks if self.config.kind == "segmentation" else labels.astype(np.int64)
            groups = np.array([f"{site}-{split}-{i // 2}" for i in range(count)])
            # As they are, channels first: the layout of a width of 3 or 4 must not be guessed.
            parts.append(ArrayExamples(images, targets, groups, to_image=np.asarray))
        return SiteData(*parts)

    def card(self) -> DataCard:
        """Synthetic, made on the spot."""
        return DataCard("Tiny squares", "Synthetic grey images made on the spot.", "none needed", "nothing to get")


class TinyNet(ModelFactory):
    """Convolution, norm, ReLU, convolution, ReLU; a pooled linear head or a 1x1 convolution."""

    config: TinyNetConfig

    def build(self, spec: TaskSpec) -> torch.nn.Module:
        """Logits ``(batch, classes)`` or ``(batch, classes, height, width)``."""
        w, classes = self.config.width, len(spec.classes)
        norm = torch.nn.GroupNorm(1, w) if self.config.norm == "group" else torch.nn.BatchNorm2d(w)
        body = [
            torch.nn.Conv2d(spec.channels, w, 3, padding=1),
            norm,
            torch.nn.ReLU(),
            torch.nn.Conv2d(w, 2 * w, 3, padding=1),
            torch.nn.ReLU(),
        ]
        if spec.kind == "segmentation":
            return torch.nn.Sequential(*body, torch.nn.Conv2d(2 * w, classes, 1))
        return torch.nn.Sequential(*body, torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(32 * w, classes))

    def definition(self, spec: TaskSpec) -> Mapping[str, Any]:
        """The same layers for MONAI."""
        w, classes = self.config.width, len(spec.classes)
        group = {"_target_": "torch.nn.GroupNorm", "num_groups": 1, "num_channels": w}
        batch = {"_target_": "torch.nn.BatchNorm2d", "num_features": w}

        def convolution(channels: int, features: int, size: int) -> dict[str, Any]:
            sizes = {"in_channels": channels, "out_channels": features, "kernel_size": size, "padding": size // 2}
            return {"_target_": "torch.nn.Conv2d", **sizes}

        relu = {"_target_": "torch.nn.ReLU"}
        body = [convolution(spec.channels, w, 3), group if self.config.norm == "group" else batch, relu, convolution(w, 2 * w, 3), relu]
        pooled = [
            {"_target_": "torch.nn.AdaptiveAvgPool2d", "output_size": 4},
            {"_target_": "torch.nn.Flatten"},
            {"_target_": "torch.nn.Linear", "in_features": 32 * w, "out_features": classes},
        ]
        head = [convolution(2 * w, classes, 1)] if spec.kind == "segmentation" else pooled
        return {"layers": [*body, *head], "network_def": "$torch.nn.Sequential(*@layers)"}
