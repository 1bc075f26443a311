"""Trains nano's transcoders with gs.train_sae: `python -m gemmascope.nano.training.train_transcoders RUN_FOLDER`, which
also resumes. They read the MLP's input and write its output, in Gemma Scope's format and folder layout.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from gemmascope.edits.edit import Edit
from gemmascope.edits.make import ablate
from gemmascope.files.writing import make_folder
from gemmascope.loading.load import load
from gemmascope.model.model import Model
from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.dictionary_files import write
from gemmascope.run.tracing import traces
from gemmascope.sae.about import ABOUT
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.load import load_sae
from gemmascope.sae.loss import LossRecovered
from gemmascope.sae.splice import splice
from gemmascope.stores.harvest import harvest
from gemmascope.training.train import train_sae

# Bits of the mantissas in the files, of the 10 that a float16 has: the rounding is far below what the features leave.
BITS = 5
# Texts that features' ties to concepts are chosen on, and as many others that confirm them.
N_TEXTS = 600


# Some 300,000 rows to train on.
N_TRAINED = 10_000


def all_spliced(model: Model, transcoders: Sequence[Dictionary], prompts: Sequence[str]) -> LossRecovered:
    """The losses with the reconstruction in place of every MLP's output at once, and with zeros in place of all.

    `<bos>` keeps its values, and the token after it is not counted.
    """
    reconstructed = [splice(one, keep_error=False) for one in transcoders]
    zeros = [ablate("mlp_out", layer=layer, pos=slice(1, None)) for layer in range(model.n_layers)]
    ids = [model.ids(prompt) for prompt in prompts]
    clean, spliced, zeroed = (_loss(model, ids, edits) for edits in ([], reconstructed, zeros))
    return LossRecovered(clean, spliced, zeroed, sum(len(one) - 2 for one in ids))


def _loss(model: Model, ids: Sequence[torch.Tensor], edits: Sequence[Edit]) -> float:
    each = [
        cross_entropy(model.network.unembed(trace.residuals[-1][1:-1]), trace.ids[2:], reduction="none")
        for trace in traces(model, list(ids), list(edits))
    ]
    return float(torch.cat(each).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.train_transcoders", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the run; transcoders are written to FOLDER/transcoders")
    folder = make_folder(parser.parse_args().folder)
    torch.set_num_threads(1)
    model, written = load("nano"), []
    corpus = islice(texts("dictionary 7"), N_TRAINED)
    store = harvest(model, corpus, ["resid_mid", "mlp_out"], out=folder / "store", exact=False)
    for layer in range(model.n_layers):
        trained = train_sae(
            store, TRANSCODER, layer, out=folder / f"layer_{layer}", architecture="batchtopk", features=1536, l0=12,
            centre=True, steps=1600, batch_size=1024, rate=1.5e-3, seed=7, held_out=0.01, model=model,
        )  # fmt: skip
        written.append(write(trained.dictionary, model, folder / "transcoders", BITS, N_TEXTS))
        print(layer, (written[-1] / ABOUT).read_text(encoding="utf-8").split('"concepts"')[0], flush=True)
    transcoders = [load_sae(path, model=model) for path in written]
    print("all layers:", all_spliced(model, transcoders, list(islice(texts("dictionary measured"), 100))))


if __name__ == "__main__":
    main()
