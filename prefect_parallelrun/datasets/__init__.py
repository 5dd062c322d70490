"""What there is to process: files and tables, and where output goes."""

from __future__ import annotations

from prefect_parallelrun.datasets.dataset import Dataset, FileItem
from prefect_parallelrun.datasets.files import FileDataset
from prefect_parallelrun.datasets.output import OutputFileDatasetConfig
from prefect_parallelrun.datasets.tables import TabularDataset

__all__ = ["Dataset", "FileDataset", "FileItem", "OutputFileDatasetConfig", "TabularDataset"]
