"""What a worker's trials report, as runs of TensorBoard: scalars by step, and params with the value. Needs
``hpsearch[tensorboard]``.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from hpsearch.objective.command import as_text
from hpsearch.trial import Report, Result
from hpsearch.worker.session import LeasedTrial


class TensorBoard:
    """:class:`hpsearch.worker.session.Recorder` that writes to ``FOLDER/STUDY/NUMBER``.

    Args:
        folder: what ``tensorboard --logdir`` is given; a path, or a URL that TensorBoard knows.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder.rstrip("/") if "://" in folder else str(Path(folder).resolve())
        self._writers: dict[str, SummaryWriter] = {}

    def reported(self, lease: LeasedTrial, report: Report) -> None:
        """See Recorder."""
        writer = self._writer(lease)
        for name, value in report.metrics.items():
            writer.add_scalar(name, value, report.step)

    def ended(self, lease: LeasedTrial, result: Result) -> None:
        """See Recorder."""
        params = {n: v if isinstance(v, bool | int | float | str) else as_text(v) for n, v in lease.params.items()}
        values = {} if result.value is None else {f"hparam/{lease.metric['name']}": result.value}
        writer = self._writer(lease)
        writer.add_hparams({**params, "stage": lease.stage, "state": str(result.state)}, values, run_name=os.curdir)
        self.holds(self._writers.keys() - {lease.token})

    def holds(self, tokens: Collection[str]) -> None:
        """See Recorder."""
        for token in [token for token in self._writers if token not in tokens]:
            self._writers.pop(token).close()

    def _writer(self, lease: LeasedTrial) -> SummaryWriter:
        if lease.token not in self._writers:
            where = f"{self._folder}/{lease.study}/{lease.trial}"
            self._writers[lease.token] = SummaryWriter(where)
        return self._writers[lease.token]
