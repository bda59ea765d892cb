"""ispasp against the published way of working on ResNet34: equal sets, seconds, and peak memory.

    python benchmarks/versus_published.py          # the whole comparison, 10-20 minutes on two cores
    python benchmarks/versus_published.py --size 64 --images-count 8 --blocks 4          # a quick look

Both sides get the same torchvision ResNet34 (random weights, seeded; batch-norm statistics from one
training-mode pass over the images), the same images and the same batches, and prune the inner channels of
the basic blocks to the same kept fraction with c = 2 and at most 20 iterations. The images are synthetic,
smoothed noise in several octaves, unless --images names a folder or zip of pictures. Each side runs in a
process of its own, one after the other, so that its peak memory is its own. Dense forward passes, the unit
in which our time is given, are measured in the same process as our run, right before it: the median of three
passes over the same batches in inference mode. Our seconds include everything that ``ispasp.prune`` does:
tracing the model, selecting, slicing, verifying and measuring the result; a block's seconds are the wall time
since the block before it was done.

Exit status 1 when any block's selected sets differ.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

import ispasp
from benchmarks.images import picture_images, synthetic_images
from benchmarks.published import published_prune, residual_blocks
from ispasp.records import BlockPruned, Finished, Started

MIB = 2**20
Inputs = tuple[nn.Module, list[Tensor]]


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Write the model's weights and the images into ``options.folder``."""
    if options.images is None:
        images = synthetic_images(options.images_count, options.size, options.seed)
    else:
        images = picture_images(options.images, options.images_count, options.size, options.seed)
    torch.manual_seed(options.seed)
    model = torchvision.models.resnet34(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average over all batches
    with torch.no_grad():
        for batch in images.split(options.batch_size):
            model.train()(batch)
    save_file(model.state_dict(), options.folder / "model.safetensors")
    save_file({"images": images}, options.folder / "images.safetensors")
    return {}


def load(options: argparse.Namespace) -> Inputs:
    """The prepared model in eval mode and the image batches, both in host memory."""
    model = torchvision.models.resnet34(weights=None)
    model.load_state_dict(load_file(options.folder / "model.safetensors"))
    images = load_file(options.folder / "images.safetensors")["images"]
    return model.eval(), list(images.split(options.batch_size))


def run_published(options: argparse.Namespace) -> dict[str, Any]:
    """The published loop over the first ``options.blocks`` blocks."""
    model, batches = load(options)
    names = [block.producer for block in residual_blocks(model)][: options.blocks]
    before = resident_bytes()
    begin, cpu = time.perf_counter(), time.process_time()
    blocks = []
    loop = published_prune(
        model,
        batches,
        options.keep,
        blocks=names,
        device=options.device,
        after_norm=options.after_norm,
    )
    for block in loop:
        blocks.append({"name": block.name, "selected": list(block.selected), "seconds": block.seconds})
        say(f"published: {block.name} {block.seconds:.1f} s")
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "blocks": blocks,
        **memory(before, options.device),
    }


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    """``ispasp.prune`` over the first ``options.blocks`` blocks, event by event, after three dense passes."""
    model, batches = load(options)
    names = [block.producer for block in residual_blocks(model)][: options.blocks]
    passes = {} if options.memory_only else dense_passes(model, batches, options.device)
    model.cpu()
    before = resident_bytes()
    result = None
    blocks: list[dict[str, Any]] = []
    begin = last = time.perf_counter()
    cpu = time.process_time()
    preparing = 0.0
    events = ispasp.iterate(
        model,
        batches,
        keep=options.keep,
        selector="ispasp",
        reconstruct="none",
        multiple=1,
        blocks=names,
        device=options.device,
    )
    for event in events:
        now = time.perf_counter()
        if isinstance(event, Started):
            preparing, last = now - begin, now
        elif isinstance(event, BlockPruned):
            blocks.append(
                {
                    "name": event.block.name,
                    "groups": event.block.groups,
                    "selected": list(event.selected),
                    "iterations": event.iterations,
                    "relative_residual": event.relative_residual,
                    "seconds": now - last,
                }
            )
            last = now
        elif isinstance(event, Finished):
            result = event.result
    end = time.perf_counter()
    assert result is not None
    return {
        "seconds": end - begin,
        "cpu_seconds": time.process_time() - cpu,
        "preparing_seconds": preparing,
        "finishing_seconds": end - last,
        **passes,
        "params": [result.report["params_before"], result.report["params_after"]],
        "macs": [result.report["macs_before"], result.report["macs_after"]],
        "blocks": blocks,
        **memory(before, options.device),
    }


def dense_passes(model: nn.Module, batches: list[Tensor], device: str) -> dict[str, list[float]]:
    """Wall and CPU seconds of three dense passes over all batches, in inference mode, after a warm-up."""
    model.to(device)
    seconds, cpu_seconds = [], []
    with torch.inference_mode():
        model(batches[0].to(device))
        for _ in range(3):
            synchronise(device)
            begin, cpu = time.perf_counter(), time.process_time()
            for batch in batches:
                model(batch.to(device))
            synchronise(device)
            seconds.append(time.perf_counter() - begin)
            cpu_seconds.append(time.process_time() - cpu)
    return {"dense_passes": seconds, "dense_passes_cpu": cpu_seconds}


def synchronise(device: str) -> None:
    """Wait for the accelerator, whose work is asynchronous, before a clock is read."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def resident_bytes() -> int:
    """Memory of this process now; where the system does not tell (no /proc), its peak so far."""
    status = Path("/proc/self/status")
    return _status_bytes("VmRSS") if status.exists() else peak_bytes()


def peak_bytes() -> int:
    """Peak resident memory of this process.

    On Linux from VmHWM: ``ru_maxrss`` survives exec and so may report what the parent process held.
    """
    if Path("/proc/self/status").exists():
        return _status_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def memory(before: int, device: str) -> dict[str, int]:
    """Peak bytes of this process, and above what it held once model and images were loaded."""
    peak = peak_bytes()
    figures = {"peak_bytes": peak, "peak_above_loaded_bytes": peak - before}
    if device.startswith("cuda"):
        figures["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def say(words: str) -> None:
    """Progress goes to stderr; stdout carries the report alone."""
    print(words, file=sys.stderr, flush=True)


def in_own_process(side: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run one side in a fresh Python process and read the figures it leaves in ``folder``."""
    say(f"running: {side} {' '.join(arguments)}".rstrip())
    figures = folder / "figures.json"
    script = str(Path(__file__).resolve())
    command = [sys.executable, script, "--side", side, "--folder", str(folder), *arguments]
    subprocess.run(command, check=True)
    return json.loads(figures.read_text())


def compare(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Run all sides one after the other and collect every figure."""
    counts = sorted({max(1, options.blocks // 4), max(1, options.blocks // 2), options.blocks})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_own_process("prepare", arguments, folder)
        ours = in_own_process("ours", arguments, folder)
        growth = []
        for count in counts:
            only = [*arguments, "--blocks", str(count), "--memory-only"]
            figures = in_own_process("ours", only, folder)
            peaks = {key: value for key, value in figures.items() if key.startswith("peak")}
            growth.append({"blocks": count, **peaks})
        published = None if options.skip_published else in_own_process("published", arguments, folder)

    dense = statistics.median(ours["dense_passes"])
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device,
        "model": "resnet34",
        "images": str(options.images) if options.images else "synthetic",
        "images_count": options.images_count,
        "size": options.size,
        "batch_size": options.batch_size,
        "keep": options.keep,
        "seed": options.seed,
        "published_residual": "after the batch norm that follows"
        if options.after_norm
        else "at the consumer",
        "dense_pass_seconds": dense,
        "dense_pass_cpu_seconds": statistics.median(ours["dense_passes_cpu"]),
        "ours_in_dense_passes": ours["seconds"] / dense,
        "ours": ours,
        "ours_memory_by_blocks": growth,
        "published": published,
    }
    if published is not None:
        theirs = {block["name"]: block["selected"] for block in published["blocks"]}
        mine = {block["name"]: block["selected"] for block in ours["blocks"]}
        report["equal_sets"] = {name: mine.get(name) == selected for name, selected in theirs.items()}
        report["times_faster"] = published["seconds"] / ours["seconds"]
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    ours, published = report["ours"], report["published"]
    heading = (
        f"ResNet34 (random weights, seed {report['seed']}), {report['images_count']} images of "
        f"{report['size']}x{report['size']} ({report['images']}) in batches of {report['batch_size']}, "
        f"keep {report['keep']}, {len(ours['blocks'])} blocks; torch {report['torch']}, torchvision "
        f"{report['torchvision']}, {report['threads']} threads, device {report['device']}."
    )
    spread = f"{min(ours['dense_passes']):.2f}-{max(ours['dense_passes']):.2f}"
    dense_pass = (
        f"- One dense forward pass over the images: {report['dense_pass_seconds']:.2f} s "
        f"(median of three, {spread}); ispasp takes {report['ours_in_dense_passes']:.2f} of them."
    )
    processor = (
        f"- CPU seconds of all threads, which other programs disturb less: dense pass "
        f"{report['dense_pass_cpu_seconds']:.2f}, ispasp {ours['cpu_seconds']:.2f}"
        + (f", published {published['cpu_seconds']:.2f}." if published else ".")
    )
    smaller = (
        f"- MACs {ours['macs'][0] / 1e9:.2f} G -> {ours['macs'][1] / 1e9:.2f} G, "
        f"parameters {ours['params'][0] / 1e6:.2f} M -> {ours['params'][1] / 1e6:.2f} M."
    )
    lines = [
        heading,
        "",
        "| block | channels | kept | iterations | equal sets | published, s | ispasp, s |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    their_seconds = {block["name"]: block["seconds"] for block in (published or {"blocks": []})["blocks"]}
    for block in ours["blocks"]:
        name = block["name"]
        equal = {True: "yes", False: "**no**"}[report["equal_sets"][name]] if published else "-"
        seconds = f"{their_seconds[name]:.2f}" if published else "-"
        lines.append(
            f"| {name} | {block['groups']} | {len(block['selected'])} | {block['iterations']} | {equal} "
            f"| {seconds} | {block['seconds']:.3f} |"
        )
    total = f"{published['seconds']:.2f}" if published else "-"
    equal = f"{sum(report['equal_sets'].values())} of {len(report['equal_sets'])}" if published else "-"
    lines += [
        f"| trace and find blocks | | | | | | {ours['preparing_seconds']:.3f} |",
        f"| slice, verify, measure | | | | | | {ours['finishing_seconds']:.3f} |",
        f"| **whole network** | | | | {equal} | {total} | {ours['seconds']:.2f} |",
        "",
    ]
    if published:
        lines.append(
            f"- For the whole network the published loop takes {report['times_faster']:.1f} times as long as "
            f"ispasp. Its residual is taken {report['published_residual']}."
        )
    lines += [
        dense_pass,
        processor,
        smaller,
        "",
        "| peak memory | whole process, MiB | above model and images loaded, MiB |",
        "|---|---:|---:|",
    ]
    for entry in report["ours_memory_by_blocks"]:
        lines.append(memory_row(f"ispasp, {entry['blocks']} blocks", entry))
    if published:
        lines.append(memory_row(f"published, {len(published['blocks'])} blocks", published))
    return "\n".join(lines)


def memory_row(what: str, figures: dict[str, Any]) -> str:
    """One row of the memory table; on CUDA the device's peak follows the name."""
    device = figures.get("peak_device_bytes")
    label = what if device is None else f"{what} (device {device / MIB:.0f} MiB)"
    return f"| {label} | {figures['peak_bytes'] / MIB:.0f} | {figures['peak_above_loaded_bytes'] / MIB:.0f} |"


def parser() -> argparse.ArgumentParser:
    """The command line; ``--side``, ``--folder`` and ``--memory-only`` are for the processes it starts."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--images-count", type=int, default=64)
    made.add_argument("--size", type=int, default=224, help="side of the square images, pixels")
    made.add_argument(
        "--images", type=Path, help="folder or zip of JPEG or PNG files; synthetic if not given"
    )
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--keep", type=float, default=0.4)
    made.add_argument("--blocks", type=int, default=16, help="only the first N of the 16 blocks")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="cpu", help="cpu or cuda, for both sides")
    made.add_argument(
        "--after-norm",
        action="store_true",
        help="take the published loop's residual after the batch norm that follows the consumer, as its code "
        "does; Algorithm 1, and so the default here, takes it at the consumer",
    )
    made.add_argument("--skip-published", action="store_true")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    made.add_argument("--side", choices=("prepare", "ours", "published"), help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    return made


def main(arguments: list[str]) -> int:
    """Run the comparison, or one side of it; the exit status."""
    options = parser().parse_args(arguments)
    if options.side:
        sides = {"prepare": prepare, "ours": run_ours, "published": run_published}
        (options.folder / "figures.json").write_text(json.dumps(sides[options.side](options)))
        return 0
    report = compare(options, arguments)
    print(json.dumps(report, indent=2) if options.json else markdown(report))
    return 0 if all(report.get("equal_sets", {}).values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
