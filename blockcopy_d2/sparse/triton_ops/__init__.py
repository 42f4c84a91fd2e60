"""Block-sparse operators as Triton kernels, each beside its launcher.

A kernel computes the pixels of the active blocks of one dense channels-last map, in place, and
leaves all others. It reads the active blocks and their number from device memory. A launch is sized
for the full map, and programs without work end at once. So the host never waits for the count, and
a captured CUDA graph stays valid for every frame.
"""
