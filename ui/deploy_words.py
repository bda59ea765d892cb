"""What the Deploy page calls things, and every term of it that explains itself on hover."""

from __future__ import annotations

from enum import Enum

import streamlit as st

from ispasp.jobs import Job, State

PRECISIONS = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8-dynamic": "INT8 dynamic",
    "int8-static": "INT8 static",
}
"""Titles of the precisions."""

PROVIDERS = {
    "cpu": "CPU",
    "cuda": "CUDA",
    "tensorrt": "TensorRT",
    "openvino": "OpenVINO",
    "coreml": "CoreML",
    "torch-eager": "torch eager",
    "torch-compile": "torch.compile",
}
"""Titles of what runs a model: onnxruntime's execution providers, and torch."""

HELP = {
    "run": "Finished runs, newest first. The choice is in the address, so that this page can be shared.",
    "open": "Look at every step of this run.",
    "finetune": "Train this run to win accuracy back; the result is a run of its own.",
    "precisions": "FP32 is always written: it is the model as it is. Each of the others is made from it by "
    "onnxruntime's own tools, dense and pruned. **FP16** halves the file; a processor without half-precision "
    "arithmetic gains no speed from it. **INT8 dynamic** stores the weights of matrix products in 8 bits and scales "
    "activations while it runs: for linear layers and transformers; convolutions stay as they are. **INT8 static** "
    "also fixes the scales of the activations, from the calibration data of the run: for convolutions.",
    "opset": "Version of the ONNX operator set in the files. Another one than the exporter's is for an engine that "
    "reads no newer one.",
    "export": "Writes dense and pruned in every precision chosen, and compares each file with torch on the evaluation "
    "data. Half a minute for a small model, minutes for a large one.",
    "export_again": "Writes all files anew. They replace those below, and what was measured with those goes with them.",
    "parity": "Every file is run on the evaluation data and its outputs are held against those of the torch model it "
    "was made from: the outputs themselves for FP32 and FP16, the answers for INT8. No file passes unchecked.",
    "size": "Of the file on disk.",
    "of_dense": "Of the dense model's FP32 file.",
    "same": "Share of the evaluation examples for which the file gives the same most likely class as torch.",
    "accuracy": "Of the torch model, then of the file, on the same examples. Unknown where the data have no labels.",
    "difference": "Largest absolute difference between the outputs of the file and of torch.",
    "mean": "Mean absolute difference over all outputs of all examples.",
    "asked": "What a file of this precision must hold to pass.",
    "relative": "The same over the largest output of torch. It is what FP32 and FP16 are held to.",
    "file": "One self-contained ONNX file, for any batch size.",
    "script": "A small Python program that prepares an input as this run did and runs the chosen file. It needs numpy "
    "and onnxruntime, not this app.",
    "worst": "The example whose outputs are furthest from those of torch. Shows the evaluation data of the run, which "
    "are read again for it; that may take a moment.",
    "batches": "Examples per call, separated by commas. Each is measured by itself.",
    "threads": "Threads that one operator may use, separated by commas. Each is measured by itself.",
    "timed": "Which of the exported files are timed; always dense against pruned in the same precision.",
    "providers": "What onnxruntime can run a model on here. One that is installed but does not load is said to be so "
    "in the table; the CPU never stands in for it.",
    "seconds": "Time spent on each line of the table, roughly. Longer makes the interval narrower.",
    "eager": "Time the torch models as well, as they are.",
    "compile": "Time the torch models through torch.compile as well. It compiles first, which takes a while.",
    "measure": "Dense and pruned are called in turns, so that other load hits both, and opened anew ten times, as "
    "where a model lies in memory shifts its speed.",
    "ratio": "Median time of the dense model over that of the pruned one, with a 95 % interval by a bootstrap. Above "
    "1 the pruned model is faster. Where the interval holds 1 there is no measurable difference.",
    "median": "Time of one call: half of the calls took less.",
    "p95": "95 % of the calls took less.",
    "p99": "99 % of the calls took less.",
    "throughput": "Examples per second, by the median.",
    "cold": "From opening the file to the first answer.",
    "memory": "By how much a fresh process grows at most while it opens the file and makes one call.",
    "profile": "Runs dense and pruned with onnxruntime's profiler, on the CPU, and gives the time of every operator to "
    "the layer it comes from.",
    "profile_precision": "Which of the exported files are profiled.",
    "profile_batch": "Examples per call.",
    "profile_threads": "Threads that one operator may use.",
    "by_block": "Time of one call by block, dense beside pruned.",
    "operators": "What the heavy operators reach of the fastest matrix product that this machine managed, measured at "
    "the same time. A low share says that memory or the layout is the limit, not the arithmetic.",
    "layers": "Every layer with weights: widths, multiply-adds and parameters before and after.",
    "weight": "Outputs × inputs × kernel.",
    "share": "Of the pruned model's time, by the profile above.",
    "role": "In its block: the producer loses outputs, the consumer the inputs that read them, a rider (such as a "
    "batch norm) stands between.",
    "report": "One HTML file with settings, figures, pictures, parity, latency and machine. It opens without this app "
    "and without a network.",
}


class Standing(Enum):
    """How far a section is; the value is its badge."""

    NOT_DONE = ":gray-badge[not done yet]"
    RUNNING = ":blue-badge[running]"
    WAITING = ":blue-badge[waiting]"
    FAILED = ":red-badge[failed]"
    DONE = ":green-badge[done]"
    DAMAGED = ":red-badge[cannot be read]"


def standing(job: Job | None, done: bool) -> Standing:
    """How far a section is whose last job is this one."""
    if job is not None and not job.state.ended:
        return Standing.RUNNING if job.state is State.RUNNING else Standing.WAITING
    if job is not None and job.state is State.FAILED:
        return Standing.FAILED
    return Standing.DONE if done else Standing.NOT_DONE


def heading(title: str, anchor: str, how: Standing | None = None, help: str | None = None) -> None:
    """The title of a section and how far it is."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"section_{anchor}"):
        st.subheader(title, anchor=anchor, width="content", help=help)
        if how is not None:
            st.markdown(how.value, width="content")
