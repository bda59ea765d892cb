"""A small ``inference.py`` that runs an exported file with the preparation of its run, for whoever lacks ispasp.

It needs numpy and onnxruntime; for pictures pillow as well, for text ``tokenizers`` or ``transformers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ispasp.deployment.precisions import file_name
from ispasp.preparation import ImagePreparation, TextPreparation
from ispasp.result import load_record, untrained
from ispasp.run_settings import RunSettings

_LARGEST_TOKENIZER = 2**17  # characters that are written into the script; a larger one is fetched by its name

_HEAD = '''"""Run {file}, written by ispasp, on {what}: python inference.py {arguments}

It needs {needs}. The file is looked for beside this script, or given by --model.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime
{imports}
{constants}

{prepare}

def main() -> None:
    parser = argparse.ArgumentParser(description="Run a model that ispasp exported.")
{options}    parser.add_argument("--model", type=Path, default=Path(__file__).with_name({file!r}))
    parser.add_argument("--top", type=int, default=5, help="how many classes to show")
    options = parser.parse_args()
    if not options.model.is_file():
        sys.exit(f"There is no model at {{options.model}}: put {file} beside this script, or give --model PATH.")
    session = onnxruntime.InferenceSession(str(options.model), providers=["CPUExecutionProvider"])
    feed = prepare(options, session)
    scores = session.run(None, feed)[0]
    if scores.ndim != 2 or scores.shape[1] < 2:
        print(f"The output has the shape {{scores.shape}}, no scores of classes:")
        return print(scores)
    for number, row in enumerate(scores.astype(np.float64)):
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        if len(scores) > 1:
            print(f"example {{number}}")
        for index in np.argsort(-row, kind="stable")[: options.top]:
            name = CLASSES[index] if len(CLASSES) == len(row) else f"class {{index}}"
            print(f"{{shares[index]:7.2%}}  {{name}}")


if __name__ == "__main__":
    main()
'''

_IMAGE = '''def prepare(options: argparse.Namespace, session: onnxruntime.InferenceSession) -> dict:
    """Every picture as the model was evaluated on: resized, cut from the middle, normalised; (N, C, H, W)."""
    return {session.get_inputs()[0].name: np.stack([pixels(path) for path in options.pictures])}


def pixels(path: Path) -> np.ndarray:
    try:
        picture = Image.open(path).convert("L" if len(MEAN) == 1 else "RGB")
    except OSError as error:
        sys.exit(f"{path} cannot be read as a picture: {error}")
    height, width = SIZE
    if picture.size != (width, height) and RESIZE is None:
        picture = picture.resize(SIZE[::-1], Image.Resampling[INTERPOLATION])
    elif picture.size != (width, height):
        scaled = [int(RESIZE * side / min(picture.size)) for side in picture.size]
        picture = picture.resize(scaled, Image.Resampling[INTERPOLATION])
        left, top = (middle(have - want) for have, want in zip(picture.size, (width, height)))
        picture = picture.crop((left, top, left + width, top + height))
    values = np.asarray(picture, dtype=np.float32).reshape(height, width, len(MEAN)).transpose(2, 0, 1)
    shift, scale = (np.array(each, dtype=np.float32).reshape(-1, 1, 1) for each in (MEAN, STD))
    return (values / 255 - shift) / scale


def middle(spare: int) -> int:
    return round(spare / 2) if spare >= 0 else -(-spare // 2)
'''

_TEXT = '''def prepare(options: argparse.Namespace, session: onnxruntime.InferenceSession) -> dict:
    """The two sentences as tokens (1, LENGTH): cut, or padded."""
    given = tokens(options)
    return {entry.name: np.array([given[entry.name]], dtype=np.int64) for entry in session.get_inputs()}


'''

_EMBEDDED = """def tokens(options: argparse.Namespace) -> dict:
    tokenizer = Tokenizer.from_str(TOKENIZER)
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=PADDING[0], pad_token=PADDING[1])
    text = tokenizer.encode(*options.sentences)
    return {"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}
"""

_FETCHED = """def tokens(options: argparse.Namespace) -> dict:
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    except (OSError, ValueError) as error:
        sys.exit(f"The tokenizer {options.tokenizer} cannot be had ({error}): give --tokenizer FOLDER.")
    return tokenizer(*options.sentences, padding="max_length", truncation=True, max_length=LENGTH)
"""

_ARRAYS = '''def prepare(options: argparse.Namespace, session: onnxruntime.InferenceSession) -> dict:
    """The arrays of a .npy or .npz file as the inputs of the model; says what it needs where they do not fit."""
    inputs = session.get_inputs()
    needs = "; ".join(f"{entry.name} {entry.shape} {entry.type}" for entry in inputs)
    needs = f"The model reads {needs}. Give a .npy file with the first, or a .npz file with all by name."
    if options.arrays is None:
        sys.exit(needs)
    try:
        read = np.load(options.arrays, allow_pickle=False)
        given = {entry.name: read[entry.name] for entry in inputs} if hasattr(read, "files") else {inputs[0].name: read}
    except (KeyError, OSError, ValueError) as error:
        sys.exit(f"{options.arrays} cannot be used ({error}). {needs}")
    for entry in inputs:
        have = given[entry.name].shape if entry.name in given else None
        want = entry.shape
        fits = have is not None and len(have) == len(want)
        if not fits or any(isinstance(w, int) and w != h for h, w in zip(have, want)):
            sys.exit(f"{options.arrays} has {entry.name} of shape {have}. {needs}")
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
    return {e.name: given[e.name].astype(types.get(e.type, given[e.name].dtype)) for e in inputs}
'''


class _Parts(NamedTuple):
    """What the script for one kind of input is made of."""

    what: str
    arguments: str
    needs: str
    imports: str
    constants: dict[str, object]
    options: dict[str, str]
    prepare: str


def script(path: Path, *, side: str = "pruned", precision: str = "fp32") -> str:
    """``inference.py`` for one exported file of a run: on pictures, on two sentences, or on arrays where nobody
    knows how raw data become inputs. No weights are loaded, and no code that the run names is run.

    Args:
        path: the run's folder.
        side, precision: which file, see ``ispasp.deployment.precisions``.

    Raises:
        SettingError: there is no such side or precision.
        RunError: the run is damaged, or was made from Python.
        ModelError: what its model reads cannot be found out here.
    """
    settings = RunSettings.of(load_record(path))
    if settings.model_source().kind == "python":
        return of(file_name(side, precision), None, model=settings.model)
    loaded = untrained(settings.model)
    return of(file_name(side, precision), loaded.preparation, loaded.classes, settings.model)


def of(
    file: str,
    preparation: ImagePreparation | TextPreparation | None,
    classes: Sequence[str] = (),
    model: str = "",
) -> str:
    """The script for the ONNX file called ``file``.

    Args:
        preparation: how raw data become the model's inputs; None where nobody knows.
        classes: names of the outputs; empty where unknown.
        model: where the model comes from, see ``ispasp.models.parse``.
    """
    if preparation is None:
        parts = _arrays()
    elif isinstance(preparation, ImagePreparation):
        parts = _pictures(preparation)
    else:
        parts = _sentences(preparation, model)
    return _HEAD.format(
        file=file,
        what=parts.what,
        arguments=parts.arguments,
        needs=parts.needs,
        imports=parts.imports,
        constants="".join(
            f"{name} = {value!r}\n"
            for name, value in {"MODEL": model, "CLASSES": tuple(classes), **parts.constants}.items()
        ),
        options="".join(
            f"    parser.add_argument({name!r}, {more})\n" for name, more in parts.options.items()
        ),
        prepare=parts.prepare,
    )


def _pictures(preparation: ImagePreparation) -> _Parts:
    kind = {"nearest-exact": "nearest"}.get(preparation.interpolation, preparation.interpolation)
    return _Parts(
        "pictures",
        "PICTURE ...",
        "numpy, onnxruntime and pillow",
        "from PIL import Image\n",
        {
            "SIZE": preparation.size,
            "RESIZE": preparation.resize,
            "MEAN": preparation.mean,
            "STD": preparation.std,
            "INTERPOLATION": kind.upper(),
        },
        {"pictures": 'type=Path, nargs="+"'},
        _IMAGE,
    )


def _sentences(preparation: TextPreparation, model: str) -> _Parts:
    tokenizer = preparation.tokenizer
    constants: dict[str, object] = {"LENGTH": preparation.max_length}
    options = {"sentences": "nargs=2"}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    embedded = backend.to_str() if backend is not None and tokenizer.padding_side == "right" else ""
    if 0 < len(embedded) <= _LARGEST_TOKENIZER:
        constants |= {"TOKENIZER": embedded, "PADDING": (tokenizer.pad_token_id, tokenizer.pad_token)}
        library, imports, read = "tokenizers", "from tokenizers import Tokenizer\n", _EMBEDDED
    else:
        options["--tokenizer"] = f'default={model.partition(":")[2]!r}, help="folder, or name on the hub"'
        library, imports, read = "transformers", "from transformers import AutoTokenizer\n", _FETCHED
    return _Parts(
        "two sentences",
        "SENTENCE SENTENCE",
        f"numpy, onnxruntime and {library}",
        imports,
        constants,
        options,
        _TEXT + read,
    )


def _arrays() -> _Parts:
    return _Parts(
        "arrays that are ready for it",
        "ARRAYS.npy",
        "numpy and onnxruntime",
        "",
        {},
        {"arrays": 'type=Path, nargs="?"'},
        _ARRAYS,
    )
