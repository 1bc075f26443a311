"""Models whose layers are divided among the processes of torch.distributed: each has some heads and columns of the MLP.
Imports loading and model.
"""
