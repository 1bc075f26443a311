"""C++ kernels for the CPU: the pointwise functions of the forward, and int8 matrices. Compiled once for a machine.

`compiler.py` compiles them and finds them again; `functions.py` calls them. Whether they compute is decided in switch.py.
"""
