"""Trains a transcoder for each of nano's layers: `python -m gemmascope.nano.training.train_transcoders RUN_FOLDER`, which
also resumes. They read the MLP's input and write its output, in Gemma Scope's format and folder layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gemmascope.files.writing import make_folder
from gemmascope.loading.load import load
from gemmascope.nano.training.sparse.recipe import Recipe
from gemmascope.nano.training.sparse.run import Run
from gemmascope.sae.catalogue import TRANSCODER


def recipe(layer: int) -> Recipe:
    """The training of a layer's transcoder."""
    return Recipe(
        seed=7, site=TRANSCODER, layer=layer, features=1536, active=12, rows=300_000, batch=1024, steps=800,
        revived=16, revived_rows=128, wide=2.0, threshold_rows=128, from_examples=0.2,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.train_transcoders", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the run; transcoders are written to FOLDER/transcoders")
    parser.add_argument("--layers", type=int, nargs="*", help="only these layers, in this order")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load("nano")
    for layer in range(model.n_layers) if args.layers is None else args.layers:
        folder = args.folder / f"layer_{layer}"
        make_folder(folder)
        run = Run(folder, model, recipe(layer))
        run.train()


if __name__ == "__main__":
    main()
