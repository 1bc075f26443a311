"""Trains nano's dictionary with gs.train_sae: `python -m gemmascope.nano.training.train_sae RUN_FOLDER`, which also resumes.

A store of nano's stream, and an autoencoder of it in Gemma Scope's format and folder layout.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch

from gemmascope.files.writing import make_folder
from gemmascope.loading.load import load
from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.dictionary_files import write
from gemmascope.sae.about import ABOUT
from gemmascope.sae.load import load_sae
from gemmascope.stores.harvest import harvest
from gemmascope.training.train import train_sae

SITE, LAYER = "resid_post", 3
# Some million rows.
N_TEXTS = 32_500


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.train_sae", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the run; the dictionary is written to FOLDER/dictionary")
    folder = make_folder(parser.parse_args().folder)
    torch.set_num_threads(1)
    model = load("nano")
    corpus = islice(texts("dictionary 6"), N_TEXTS)
    store = harvest(model, corpus, SITE, layers=LAYER, out=folder / "store", exact=False)
    trained = train_sae(
        store, out=folder / "training", architecture="batchtopk", features=1024, l0=10, centre=True, steps=2200,
        batch_size=2048, rate=1.5e-3, seed=6, held_out=0.01, model=model,
    )  # fmt: skip
    print(trained)
    target = write(trained.dictionary, model, folder / "dictionary")
    print((target / ABOUT).read_text(encoding="utf-8"))
    print(load_sae(target))


if __name__ == "__main__":
    main()
