"""onnxruntime against torch: load an ONNX file, give it a batch, compare the outputs."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from ispasp import padding
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError, ExportError, SettingError, listing
from ispasp.evaluate import first_tensor, forward

PROVIDER = "CPUExecutionProvider"
_PROTOBUF_LIMIT = 2**31 - 2**24  # bytes: an ONNX file ends at 2 GiB; some room for the graph itself


@dataclass(frozen=True)
class Parity:
    """How far onnxruntime's output is from torch's, both in float32 on the CPU. Padding is not compared.

    Attributes:
        max_abs_diff: largest absolute difference over all outputs and examples.
        max_rel_diff: for each output its largest absolute difference over the largest absolute value
            that torch gives for it, both over all examples; then the largest over the outputs.
        top1_agreement: fraction of the rows of the first output, in [0, 1], with the same largest class;
            None where that output is not (N, classes) with two classes or more.
        examples: number of examples compared.
    """

    max_abs_diff: float
    max_rel_diff: float
    top1_agreement: float | None
    examples: int


def check_parity(
    model: nn.Module, path: str | os.PathLike[str], batches: Iterable[object], tolerance: float = 1e-4
) -> Parity:
    """Run ``batches`` through torch and through the ONNX file at ``path`` and compare, in float32 on the CPU.

    Args:
        model: compared in evaluation mode; a copy is used and the model stays as it was.
        batches: an iterable of inputs (a tensor, a tuple of tensors, or a dict of keyword tensors), each
            alone or as ``(inputs, labels)``; labels are ignored.
        tolerance: largest ``max_rel_diff`` accepted.

    Raises:
        SettingError: ``tolerance`` is not a positive number.
        CalibrationError: ``batches`` is empty.
        ExportError: the file is missing or damaged, does not run on a batch, gives a value that is not
            finite, or differs by more than ``tolerance``.
    """
    check_tolerance(tolerance)
    return compare(cpu_copy(model), Path(path), batches, tolerance)


def check_tolerance(tolerance: float) -> None:
    """SettingError unless ``tolerance`` is a positive number."""
    if not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
        raise SettingError(f"tolerance is {tolerance!r}; it must be a positive number, e.g. 1e-4.")


def cpu_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and evaluation mode.

    Always a copy: tracing swaps parameters for a moment, and another thread may be using the model.

    Raises:
        ExportError: it is not a module, does not fit into one ONNX file, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"model is a {type(model).__name__}; give the torch.nn.Module itself.")
    values = [*model.parameters(), *model.buffers()]
    size = sum(v.numel() * (4 if v.is_floating_point() else v.element_size()) for v in values)
    if size > _PROTOBUF_LIMIT:
        raise ExportError(
            f"The weights take {size / 2**30:.1f} GiB; one ONNX file holds 2. Prune the model further."
        )
    try:
        return copy.deepcopy(model).cpu().float().eval()
    except Exception as error:
        raise ExportError(
            f"The model cannot be copied to the CPU: {reason(error)}. "
            "Clear what it kept from earlier forward calls."
        ) from error


def plain(tensor: Tensor) -> Tensor:
    """The tensor on the CPU; floating point becomes float32."""
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def open_session(
    path: str | os.PathLike[str], *, threads: int = 1, deterministic: bool = False, provider: str = PROVIDER
) -> onnxruntime.InferenceSession:
    """Load an ONNX file for ``provider`` with ``threads`` intra-op threads, never for another one in its place.

    Raises:
        ExportError: the file is missing or damaged, or the provider does not load.
    """
    if not Path(path).is_file():
        raise ExportError(f"There is no ONNX file at {path}. Export the model first.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = deterministic
    options.log_severity_level = 3  # errors only: warnings would reach the terminal past Python's streams
    # Idle threads of one session would otherwise keep spinning and slow the next session down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    except Exception as error:
        elsewhere = "" if provider == PROVIDER else f" for {provider}"
        raise ExportError(
            f"{path} is not an ONNX file that onnxruntime can load{elsewhere}: {reason(error)}. "
            f"{'Export the model again' if provider == PROVIDER else 'Choose another provider'}."
        ) from error
    if session.get_providers()[0] != provider:
        raise ExportError(
            f"onnxruntime has {provider}, but it does not load, and the CPU would run in its place; "
            "install its driver and libraries, or choose another provider."
        )
    return session


def session_batch(session: onnxruntime.InferenceSession, given: object) -> tuple[Batch, dict[str, object]]:
    """One batch as arguments for torch and as named arrays for ``session``, which says how many inputs
    there are; what comes after them, such as labels, is left out. ExportError if it does not fit."""
    names = [entry.name for entry in session.get_inputs()]
    if isinstance(given, list | tuple) and given and not isinstance(given[0], Tensor):
        given = given[0]  # ((a, b), labels) or ({...}, labels)
    if isinstance(given, Batch):
        given = given.keywords or given.inputs
    if isinstance(given, Mapping):
        named = {name: given[name] for name in names if name in given}
    else:
        values = [given] if isinstance(given, Tensor) else given if isinstance(given, list | tuple) else ()
        named = dict(zip(names, values, strict=False))
    if len(named) < len(names) or not all(
        isinstance(value, Tensor) and value.ndim for value in named.values()
    ):
        raise ExportError(
            f"A {type(given).__name__} does not fit the ONNX file, which reads {listing(names)}; give a tensor, "
            "a tuple of tensors or a dict with these names, alone or as (inputs, labels)."
        )
    tensors = {name: plain(value) for name, value in named.items()}
    batch = Batch((), tensors) if isinstance(given, Mapping) else Batch(tuple(tensors.values()), {})
    return batch, {name: value.numpy() for name, value in tensors.items()}


def leaves(value: object) -> list[Tensor]:
    """The tensors in a model's output, in order; tuples, lists and dicts may be nested."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [leaf for item in inner for leaf in leaves(item)]


@dataclass(frozen=True)
class Outputs:
    """What torch and onnxruntime give for one batch, in float64 on the CPU, positions of padding left out.

    Attributes:
        batch: what both were given.
        expected, found: torch's and onnxruntime's outputs, of equal shapes.
        examples: for each output the example within the batch, (rows,) int64, that each of its rows belongs to.
        answer: which of the outputs holds the logits.
    """

    batch: Batch
    expected: list[Tensor]
    found: list[Tensor]
    examples: list[Tensor]
    answer: int


class ShapeError(ExportError):
    """The two engines give outputs of different shapes."""


def run_both(model: nn.Module, session: onnxruntime.InferenceSession, given: object) -> Outputs:
    """One batch through a model that is ready (``cpu_copy``) and through its file.

    Raises:
        ExportError: the batch does not fit the file, or does not run; `ShapeError` where it does and the
            outputs cannot be compared.
    """
    batch, feed = session_batch(session, given)
    try:
        found = [torch.from_numpy(value).double() for value in session.run(None, feed)]
        output = forward(model, batch)
        tensors = leaves(output)
        logits = first_tensor(output)
    except Exception as error:
        raise ExportError(
            f"A batch of {len(batch)} does not run: {reason(error)}. Give batches like the example inputs."
        ) from error
    expected = [value.double() for value in tensors]
    shapes, wanted = [tuple(v.shape) for v in found], [tuple(v.shape) for v in expected]
    if shapes != wanted:
        raise ShapeError(
            f"onnxruntime gives outputs of shape {shapes}, torch {wanted}; do not use this file."
        )
    return Outputs(
        batch,
        [padding.counted(batch.mask, torch.atleast_1d(value)) for value in expected],
        [padding.counted(batch.mask, torch.atleast_1d(value)) for value in found],
        [_examples(batch, torch.atleast_1d(value)) for value in expected],
        next((index for index, tensor in enumerate(tensors) if tensor is logits), 0),
    )


def _examples(batch: Batch, value: Tensor) -> Tensor:
    """(rows,) the example that each row of ``padding.counted`` belongs to; ``value`` is (N, ...) or (N * T, ...)."""
    index = padding.rows(batch.mask, value)
    first = torch.arange(len(value)) if index is None else index.nonzero()[:, 0]
    return first * len(batch) // max(len(value), 1)


class Differences:
    """How far the outputs of two engines are apart, batch by batch; keeps figures, no outputs.

    Attributes:
        examples: number of examples so far.
        worst: position of the example with the largest absolute difference; of the first one with a value that
            is not finite, where there is one.
        broken: number of examples with NaN or infinity.
        engine: which of the two gave the first of these; empty where there is none.
    """

    def __init__(self) -> None:
        self.examples = self.worst = self.broken = 0
        self.engine = ""
        self._largest = -1.0
        self._scores: list[tuple[float, float]] = []  # per output: largest difference, largest value
        self._sum, self._values = 0.0, 0

    def add(self, outputs: Outputs) -> None:
        """Count one more batch."""
        now, broken = [], set()
        for expected, found, example in zip(outputs.expected, outputs.found, outputs.examples, strict=True):
            difference = (found - expected).abs()
            if not difference.numel():
                now.append((0.0, 0.0))
                continue
            now.append((float(difference.max()), float(expected.abs().max())))
            self._sum += float(difference.sum())
            self._values += difference.numel()
            by_row = difference.reshape(len(difference), -1).amax(1)
            if not bool(by_row.isfinite().all()):
                broken |= set(example[~by_row.isfinite()].tolist())
                self.engine = self.engine or ("onnxruntime" if bool(expected.isfinite().all()) else "torch")
            elif not self.broken and float(by_row.max()) > self._largest:
                self._largest = float(by_row.max())
                self.worst = self.examples + int(example[by_row.argmax()])
        if broken and not self.broken:
            self.worst = self.examples + min(broken)
        self._scores = [
            (max(a, c), max(b, d)) for (a, b), (c, d) in zip(self._scores or now, now, strict=True)
        ]
        self.broken += len(broken)
        self.examples += len(outputs.batch)

    def check(self) -> None:
        """CalibrationError where nothing was compared."""
        if not self._values:
            raise CalibrationError(
                "The batches for the parity hold no example; give at least one batch of one example."
            )

    @property
    def absolute(self) -> float:
        """Largest absolute difference; finite where nothing is broken, as all figures."""
        return max(difference for difference, _ in self._scores)

    @property
    def largest(self) -> float:
        """Largest absolute value that torch gives; 0 where equality shows little, as of a head that is all 0."""
        return max(largest for _, largest in self._scores)

    @property
    def relative(self) -> float:
        """Largest over the outputs of the largest difference over the largest absolute value that torch gives."""
        return _relative(self._scores)

    def relative_beside(self, answer: int) -> float:
        """The same over all outputs but the one at ``answer``; 0 where there is no other."""
        return _relative([score for index, score in enumerate(self._scores) if index != answer])

    @property
    def mean(self) -> float:
        """Mean absolute difference over all values of all outputs."""
        return self._sum / self._values


def _relative(scores: Iterable[tuple[float, float]]) -> float:
    return max((d / largest if largest else math.inf if d else 0.0 for d, largest in scores), default=0.0)


def compare(model: nn.Module, path: Path, batches: Iterable[object], tolerance: float) -> Parity:
    """`check_parity` on a model that is ready: on the CPU, in float32 and evaluation mode."""
    session = open_session(path, deterministic=True)
    differences = Differences()
    agreed = answers = 0
    classes = True
    for given in batches:
        outputs = run_both(model, session, given)
        differences.add(outputs)
        if differences.broken:
            raise ExportError(
                f"The output of {differences.engine} has NaN or infinity. Check the inputs and the weights."
            )
        found, expected = outputs.found[0], outputs.expected[0]
        classes = classes and found.ndim == 2 and found.shape[1] > 1
        agreed += int((found.argmax(1) == expected.argmax(1)).sum()) if classes else 0
        answers += len(found)
    differences.check()
    absolute, relative, examples = differences.absolute, differences.relative, differences.examples
    agreement = agreed / answers if classes else None
    if relative > tolerance:
        classified = "" if agreement is None else f", top-1 agreement {agreement:.4f}"
        raise ExportError(
            f"onnxruntime and torch disagree over {examples} examples: largest absolute difference "
            f"{absolute:.3g}, relative {relative:.3g}, accepted {tolerance:g}{classified}. "
            "Do not use this file; report the model."
        )
    return Parity(absolute, relative, agreement, examples)


def reason(error: BaseException) -> str:
    """The first line of the first cause, without terminal colours and without its closing full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(getattr(error, "strerror", None) or error)).strip()
    return text.splitlines()[0].rstrip(".: ") if text else type(error).__name__
