"""Kernels of fixed-shape heads. Imported where Triton runs, see blockcopy_d2.kernels."""
