"""What a fine-tuning of a saved run leaves on disk on its way: in ``.tuning/<run id>`` of the runs folder."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ispasp import plain_files, unfinished
from ispasp.errors import RunError
from ispasp.paths import inside
from ispasp.result import RunRecord, load_record, write_record
from ispasp.tuning import checkpoint
from ispasp.tuning.checkpoint import TuneState
from ispasp.tuning.memory import Weights
from ispasp.tuning.request import TuneRequest
from ispasp.unfinished import Claim

FOLDER = ".tuning"


@dataclass(frozen=True)
class Plan:
    """What a fine-tuning has to do.

    Attributes:
        parent, request, epochs_done, epochs_total, begun_at: as in ``ispasp.tuning.runs.CutOff``.
        digest: of the run that is fine-tuned, see ``ispasp.tuning.runs.digest_of``.
        threads: of torch on the CPU; with as many it gives the same result to the last bit.
    """

    parent: str
    digest: str
    request: TuneRequest
    threads: int
    epochs_done: int
    epochs_total: int
    begun_at: str

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return vars(self) | {"request": self.request.plain()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """What ``plain`` gave. Raises ValueError, KeyError or RunError where it is something else."""
        fields = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        return plain_files.check_fields(cls(**fields | {"request": TuneRequest.of(values["request"])}))


def planned(folder: Path) -> Plan:
    """The plan of a fine-tuning that another process of the same launch has claimed.

    Raises:
        RunError: it cannot be read from here.
    """
    try:
        return Plan.of(plain_files.read_json(folder / unfinished.PLAN))
    except unfinished.UNREADABLE as error:
        raise RunError(
            f"There is nothing in {folder} to go on with; the runs folder must be one that all processes can read."
        ) from error


class Files:
    """A ``Memory`` in a folder.

    ``stage-0002`` holds what the pruning of the third block has left, ``epochs-0002`` the last epoch behind it. Once
    the next block is there, neither is needed any more.

    Args:
        folder: where they lie.
        writes: whether this process writes them; of several, one does.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self._pruned_again: int | None = None

    def _stages(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("stage-*") if path.is_dir())

    def pruned(self) -> tuple[RunRecord, Weights] | None:
        """As in ``Memory``. Raises RunError where it is damaged."""
        if not (found := self._stages()):
            return None
        record = load_record(found[-1], finished=False)
        try:
            return record, load_file(found[-1] / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise RunError(f"{found[-1]} is damaged ({error}); discard it and run again.") from error

    def keep_pruned(self, record: RunRecord, weights: Weights) -> None:
        """As in ``Memory``. Raises RunError where the disk is full."""
        if not self.writes:
            return
        stage = len(record.blocks_pruned) - 1
        place = self.folder / f"stage-{stage:04d}"
        partial = self.folder / f".{place.name}.{secrets.token_hex(4)}.partial"

        def write() -> None:
            try:
                write_record(record, partial)
                save_file(weights, partial / "model.safetensors")
                partial.rename(place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

        # Epochs of this stage are there where the disk was too full for its pruning, which was made again.
        self._pruned_again = stage
        epochs = (path for path in self.folder.glob("epochs-*") if path.name < self._epochs(stage).name)
        before = [*self._stages(), *epochs]
        unfinished.written(self.folder, write)
        for old in before:
            shutil.rmtree(old, ignore_errors=True)

    def state(self, stage: int, fingerprint: str) -> TuneState | None:
        """As in ``Memory``. Raises RunError where it is damaged, or of something else."""
        try:
            return checkpoint.read(self._epochs(stage), fingerprint)
        except RunError:
            if stage == self._pruned_again:  # to other last digits: its epochs are made again as well
                return None
            raise

    def keep_state(self, stage: int, state: TuneState) -> None:
        """As in ``Memory``. Raises RunError where the disk is full."""
        if self.writes:
            checkpoint.write(state, self._epochs(stage))

    def _epochs(self, stage: int) -> Path:
        return self.folder / f"epochs-{stage:04d}"


class TuneAttempt(Claim):
    """A fine-tuning under way, and what there is of it on disk.

    Attributes:
        asked: what it has to do.
    """

    def __init__(self, runs_folder: Path, run_id: str, patience: float = unfinished.PATIENCE) -> None:
        """As ``Claim``; ``run_id`` is the name of what was begun in ``runs_folder``."""
        super().__init__(inside(runs_folder / FOLDER, run_id), patience)

    def read_plan(self) -> None:
        self.asked = Plan.of(self.plan)

    @property
    def empty(self) -> bool:
        """Whether nothing is done yet that could be gone on from."""
        return not any(self.folder.glob("*-*"))
