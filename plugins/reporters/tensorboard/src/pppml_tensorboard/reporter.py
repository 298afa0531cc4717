"""Reporter ``tensorboard``: event files, written by torch's writer over the ``tensorboard`` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pppml_core.interfaces.reporter import Event, Reporter
from pppml_core.report.scalars import MEAN, RoundScalars, flat_settings
from pppml_tensorboard.config import TensorBoardConfig


class TensorBoard(Reporter):
    """One point a round and number. A resumed run tells TensorBoard to forget the rounds that are held again."""

    config: TensorBoardConfig
    essential = False

    def __init__(self, config: TensorBoardConfig) -> None:
        super().__init__(config)
        self._writer: SummaryWriter | None = None
        self._scalars = RoundScalars()
        self._run: Path | None = None

    def open(self, folder: Path) -> None:
        """Remember where; the files are begun when the first round to come is known. Raises OSError where they cannot be written."""
        self.close()
        self._run, self._scalars = folder, RoundScalars()
        self._folder().mkdir(parents=True, exist_ok=True)

    def handle(self, event: Event) -> None:
        """Write what is known for good, once a round."""
        if self._run is None:
            return
        if event["event"] == "run-started":
            self._begin(event)
        if self._writer is None:
            return
        for name, value, step in self._scalars.take(event):
            self._writer.add_scalar(name, value, step, walltime=event.get("time"))
        if event["event"] == "warning":
            self._writer.add_text("warnings", str(event["text"]), int(event.get("round") or 0))
        if event["event"] == "run-finished":
            self._compare(event["result"])
        if event["event"] in ("round-finished", "run-finished", "run-failed"):
            self._writer.flush()

    def close(self) -> None:
        """Write what is left; safe to call twice."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _folder(self) -> Path:
        assert self._run is not None
        return Path(self.config.folder, self._run.resolve().name) if self.config.folder else self._run / "tensorboard"

    def _begin(self, event: Event) -> None:
        folder = self._folder()
        again = any(folder.glob("events.out.tfevents.*"))
        # Whatever an earlier process wrote of the coming rounds is marked as gone.
        self._writer = SummaryWriter(str(folder), purge_step=event["first_round"] if again else None)
        if not again:
            self._writer.add_text("headline", str(event["headline"]), 0)
            self._writer.add_text("config", _code(self._read_config()), 0)

    def _compare(self, result: dict[str, Any]) -> None:
        """The run as a row of the HPARAMS page: its settings, and the mean test scores."""
        writer: Any = self._writer
        settings = flat_settings(yaml.safe_load(self._read_config()))
        scores = {f"{m}/test/{w}/{MEAN}": 0.0 for w, s in result["metrics"].items() for m, value in s["mean"].items() if value is not None}
        for summary in hparams(settings, scores):
            writer.file_writer.add_summary(summary)

    def _read_config(self) -> str:
        assert self._run is not None
        return (self._run / "config.resolved.yaml").read_text("utf-8")


def _code(text: str) -> str:
    """Markdown that shows ``text`` as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
