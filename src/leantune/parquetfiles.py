"""Parquet files, as data sets on the hub have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Dataset

from leantune.errors import BadInput


def read_parquet(folder: Path, pattern: str, columns: Sequence[str]) -> Dataset:
    """The named columns of all files that match, in the order of their names.

    Raises BadInput where there is no such file, one cannot be read, or one lacks a column.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise BadInput(f"{folder} has no file {pattern}; fetch the data again, or complete the mirror")
    try:
        table = pyarrow.concat_tables(pyarrow.parquet.read_table(file, columns=list(columns)) for file in files)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"{folder / pattern} cannot be read ({str(error)[:200]}); fetch the data again") from error
    absent = sorted(set(columns) - set(table.column_names))
    if absent:
        raise BadInput(
            f"{folder / pattern} has no column '{absent[0]}'; take the data set that the task was written for"
        )
    return Dataset(table)
