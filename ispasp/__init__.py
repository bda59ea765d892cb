"""i-SpaSP: iterative Sparse Structured Pruning (Wolfe & Kyrillidis, L4DC 2022), to see, understand and use."""

from ispasp.blocks import find_blocks
from ispasp.distil import distil
from ispasp.errors import ISpaSPError
from ispasp.finetune import finetune
from ispasp.onnx_export import export_onnx
from ispasp.pruner import iterate, prune
from ispasp.records import Block, BlockPruned, BlockStarted, Distilled, Finished, Iteration, Progress, Started
from ispasp.result import PruneResult, load

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BlockPruned",
    "BlockStarted",
    "Distilled",
    "Finished",
    "ISpaSPError",
    "Iteration",
    "Progress",
    "PruneResult",
    "Started",
    "distil",
    "export_onnx",
    "find_blocks",
    "finetune",
    "iterate",
    "load",
    "prune",
]
