"""Trains a dictionary on nano's stream: `python -m gemmascope.nano.training.train_sae RUN_FOLDER`, which also resumes.

A JumpReLU autoencoder in Gemma Scope's format and folder layout. sparse/ holds the training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gemmascope.files.writing import make_folder
from gemmascope.loading.load import load
from gemmascope.nano.training.sparse.recipe import Recipe
from gemmascope.nano.training.sparse.run import Run
from gemmascope.nano.training.sparse.write import write
from gemmascope.sae.about import ABOUT
from gemmascope.sae.load import load_sae

RECIPE = Recipe(
    seed=6, site="resid_post", layer=3, features=1024, active=10, rows=1_000_000, batch=2048, steps=2200
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.train_sae", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the run; the dictionary is written to FOLDER/dictionary")
    args = parser.parse_args()
    make_folder(args.folder)
    torch.set_num_threads(1)
    run = Run(args.folder, load("nano"), RECIPE)
    run.train()
    target = write(run, args.folder / "dictionary")
    print((target / ABOUT).read_text(encoding="utf-8"))
    print(load_sae(target))


if __name__ == "__main__":
    main()
