"""Results as a table in Apache Parquet, for pandas, DuckDB, Spark and their like."""

__all__ = ["ParquetWriter"]

# Rows per group of the file.
_GROUP = 4096


class ParquetWriter:
    """
    Writes the columns ``frame``, ``time``, ``captured``, ``category_id``, ``is_thing``, ``score``,
    ``x``, ``y``, ``width``, ``height``, ``angle``, ``track_id``, ``mask_height``, ``mask_width``,
    ``mask_counts`` (COCO's run lengths) and ``keypoints``. Missing values are null.
    """

    suffix = ".parquet"

    @staticmethod
    def check(*, tracks):
        """
        Raises:
            ImportError: pyarrow is missing, or does not work with the other packages.
        """
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"The format parquet needs pyarrow ({error}): pip install 'blockcopy-d2[parquet]',"
                " or choose another format."
            ) from error

    def __init__(self, path):
        """
        Args:
            path (str): path of the file to write.
        """
        self.check(tracks=False)
        import pyarrow
        from pyarrow import parquet

        self._table_of = pyarrow.Table.from_pylist
        self._schema = pyarrow.schema(
            [
                pyarrow.field("frame", pyarrow.int64(), nullable=False),
                ("time", pyarrow.float64()),
                ("captured", pyarrow.float64()),
                ("category_id", pyarrow.int64()),
                ("is_thing", pyarrow.bool_()),
                ("score", pyarrow.float32()),
                *((name, pyarrow.float32()) for name in ("x", "y", "width", "height", "angle")),
                ("track_id", pyarrow.int64()),
                ("mask_height", pyarrow.int32()),
                ("mask_width", pyarrow.int32()),
                ("mask_counts", pyarrow.string()),
                ("keypoints", pyarrow.list_(pyarrow.float32())),
            ]
        )
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows = []

    def add(self, rows, seconds):
        """
        Args:
            rows (list[dict]): rows of the next frame.
            seconds (float or None): when it is shown.
        """
        self._rows += map(_columns, rows)
        if len(self._rows) >= _GROUP:
            self._flush()

    def close(self):
        """Finish the file."""
        self._flush()
        self._writer.close()

    def abandon(self):
        """Close the file as it is."""
        self._writer.close()

    def _flush(self):
        if self._rows:
            self._writer.write_table(self._table_of(self._rows, schema=self._schema))
        self._rows = []


def _columns(row):
    columns = {"frame": row["image_id"], "is_thing": row.get("isthing")}
    names = ("time", "captured", "category_id", "score", "track_id", "keypoints")
    columns |= {name: row.get(name) for name in names}
    if "bbox" in row:
        columns |= dict(zip(("x", "y", "width", "height", "angle"), row["bbox"], strict=False))
    if "segmentation" in row:
        mask = row["segmentation"]
        columns["mask_height"], columns["mask_width"] = mask["size"]
        columns["mask_counts"] = mask["counts"]
    return columns
