"""Tables of numbers that kernels read by the names of their columns."""

from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.kernels.table import column_numbers, table_of  # noqa: E402


class Row(NamedTuple):
    offset: int
    height: int
    width: int


def test_columns_are_where_their_names_say():
    columns = column_numbers(Row)
    table = table_of([Row(7, height=2, width=3), Row(2**40, 5, 6)], "cpu")
    assert table.dtype == torch.int64 and table.shape == (2, len(columns))
    assert table[:, columns.height].tolist() == [2, 5]
    assert table[1, columns.offset] == 2**40
