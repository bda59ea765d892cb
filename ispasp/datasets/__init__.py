"""Where calibration, training and evaluation data come from, prepared as a model reads them."""

from ispasp.datasets.loading import load
from ispasp.datasets.request import Data
from ispasp.datasets.source import KINDS, DataSource, parse
from ispasp.datasets.training import Training, load_training

__all__ = ["KINDS", "Data", "DataSource", "Training", "load", "load_training", "parse"]
