"""Motion: where the content of a picture was one frame ago."""

from .field import clear_field, field_size, moved_cells, resample_field, zero_field

__all__ = ["clear_field", "field_size", "moved_cells", "resample_field", "zero_field"]
