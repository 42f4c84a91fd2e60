"""Block-sparse operators as Triton kernels, each beside its launcher.

A kernel computes the pixels of the active blocks of one dense channels-last map, in place, and
leaves all others. Which blocks are active, and how many, it reads from device memory: a launch is
sized for the full map and programs without work leave at once, so that the host never waits for
the count and a captured CUDA graph stays valid for every frame.
"""
