"""Fits nano's Jacobian lens: `python -m gemmascope.nano.training.fit_jacobian_lens RUN_FOLDER`, which also resumes.

The lens is written to RUN_FOLDER/jacobian_lens.safetensors, in float16 as published ones are, and measured beside the logit
lens on texts that it was not fitted on.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from gemmascope.circuits.jacobian.fit import fit_jacobian_lens
from gemmascope.circuits.jacobian.lens import JacobianLens
from gemmascope.circuits.jacobian.load import load_jacobian_lens
from gemmascope.files.writing import make_folder
from gemmascope.loading.load import load
from gemmascope.model.maths import kl_divergence
from gemmascope.model.model import Model
from gemmascope.nano.training.corpus import texts
from gemmascope.run.tracing import traces

SEED = "jacobian lens"
# nano's texts have some thirty tokens: only `<bos>` and the first words are unlike the others.
SKIP_FIRST = 4


def divergence(lens: JacobianLens | None, model: Model, seed: str, n: int) -> Tensor:
    """KL(the model's distribution || what a lens reads), in nats, [layer]: the mean over positions of n texts of the corpus.

    lens: None for the logit lens. The positions are those that a fit uses.
    """
    total, n_pos = torch.zeros(model.n_layers, dtype=torch.float64), 0
    for trace in traces(model, [model.ids(text) for text in islice(texts(seed), n)]):
        final = model.network.unembed(trace.residuals[-1][SKIP_FIRST:-1]).log_softmax(-1)
        for layer in range(model.n_layers):
            rows = trace.residuals[layer + 1][SKIP_FIRST:-1]
            carried = rows if lens is None or layer not in lens.layers else lens.carry(layer, rows)
            read = model.network.unembed(carried).log_softmax(-1)
            total[layer] += kl_divergence(final, read).sum().double()
        n_pos += len(final)
    return total / n_pos


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.fit_jacobian_lens", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the run")
    args = parser.parse_args()
    make_folder(args.folder)
    torch.set_num_threads(1)
    model, path = load("nano"), args.folder / "jacobian_lens.safetensors"
    fit_jacobian_lens(model, texts(SEED), skip_first=SKIP_FIRST, out=args.folder / "run.safetensors").save(path)
    lens = load_jacobian_lens(path)
    print(lens)
    for name, one in (("logit lens", None), ("Jacobian lens", lens)):
        kl = ", ".join(f"{nats:.3f}" for nats in divergence(one, model, "jacobian lens measured", 300).tolist())
        print(f"{name}: KL of the model's distribution from what each layer reads, in nats: {kl}")


if __name__ == "__main__":
    main()
