"""An emulated CUDA device: tensors that say cuda:0 and compute on the CPU, under CUDA's rules. It needs no GPU.

    with EmulatedCuda() as cuda:
        model = gs.load(folder, device="cuda")
        ...
    assert not cuda.races

Numbers are real, so code that looks at values works. What is checked: tensors of different devices in one operation;
memory that one stream writes while another may still use it, or that is freed under it (clocks.py). What is counted:
kernels, synchronisations and pageable copies, with the line of the package that asked for each (counts.py); bytes alive on
each device and their peak (memory.py). What is not emulated: time, CUDA's rounding, the allocator's fragmentation, compiled
functions (they run uncompiled).
"""

from __future__ import annotations

from emulated_cuda.device import EmulatedCuda as EmulatedCuda
