"""Recipe: what a training of a dictionary is asked, as numbers that its checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from gemmascope.arguments import finite_number, one_of, short_repr, true_or_false, whole_number
from gemmascope.errors import DictionaryError
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sae.weights import INPUT_SITES, OUTPUT_SITES

JUMP_RELU, TOP_K, BATCH_TOP_K, RELU = "jumprelu", "topk", "batchtopk", "relu"
ARCHITECTURES = (JUMP_RELU, TOP_K, BATCH_TOP_K, RELU)
# Which of l0 and sparsity an architecture takes.
_TAKES = {JUMP_RELU: ("l0", "sparsity"), TOP_K: ("l0",), BATCH_TOP_K: ("l0",), RELU: ("sparsity",)}

# The learning rate of a dictionary of 16,384 features; it falls with the square root of their number ("Scaling and
# evaluating sparse autoencoders", arXiv 2406.04093).
RATE, RATE_FEATURES = 2e-4, 2**14


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training of a dictionary.

    Attributes:
        site: The site, or "transcoder".
        layer: Its layer; None outside the layers.
        architecture: "jumprelu", "topk", "batchtopk" or "relu".
        features: How many features the dictionary has.
        l0: How many of them are active at a position; None where sparsity is given.
        sparsity: The coefficient of the penalty; None where l0 is given.
        skip: Whether a transcoder has a skip connection.
        input_site: What a transcoder reads, as in a Dictionary.
        output_site: What a transcoder writes.
        centre: Whether the mean is taken from rows.
        steps: How many steps are taken.
        batch_size: Rows of a step.
        rate: The peak of the learning rate.
        warm_up: Over how many steps the learning rate rises.
        decay: In which share of the steps, at the end, it falls to zero.
        settle: In which share of the steps, at the beginning, the dictionary becomes as sparse as it is asked to be.
        bandwidth: The width of the kernel by which thresholds learn.
        dead_after: How many rows without activation make a feature dead.
        revive: The weight of the loss that revives dead features; 0 for none.
        seed: The seed of weights and batches.
    """

    site: str
    layer: int | None
    architecture: str
    features: int
    l0: float | None
    sparsity: float | None
    skip: bool
    input_site: str | None
    output_site: str
    centre: bool
    steps: int
    batch_size: int
    rate: float
    warm_up: int
    decay: float
    settle: float
    bandwidth: float
    dead_after: int
    revive: float
    seed: int

    @property
    def is_transcoder(self) -> bool:
        return self.site == TRANSCODER

    @classmethod
    def of(cls, asked: Mapping[str, object], n_rows: int) -> Recipe:
        """The recipe of what a user asks. DictionaryError for what does not fit.

        Args:
            asked: By name; None for a default that depends on the others.
            n_rows: How many rows there are to train on.
        """
        whole = {name: _whole(asked[name], name, 0 if name == "seed" else 1) for name in ("features", "batch_size", "seed")}
        if whole["batch_size"] > n_rows:
            raise DictionaryError(
                f"batch_size={whole['batch_size']:,} rows of a step, and there are {n_rows:,} to train on: give a smaller "
                "batch_size, or rows of more texts"
            )
        architecture = one_of(asked["architecture"], "architecture", ARCHITECTURES, error=DictionaryError)
        steps = max(1, n_rows // whole["batch_size"]) if asked["steps"] is None else _whole(asked["steps"], "steps", 1)
        rate = (
            RATE * (RATE_FEATURES / whole["features"]) ** 0.5 if asked["rate"] is None else _above_0(asked["rate"], "rate")
        )
        dead = min(10**7, steps * whole["batch_size"] // 20) if asked["dead_after"] is None else asked["dead_after"]
        site = str(asked["site"])
        l0, sparsity = _sparsity(architecture, asked, whole["features"])
        skip, input_site, output_site = _of_transcoders(site, asked)
        return cls(
            site=site,
            layer=asked["layer"],  # type: ignore[arg-type]
            architecture=architecture,
            features=whole["features"],
            l0=l0,
            sparsity=sparsity,
            skip=skip,
            input_site=input_site,
            output_site=output_site,
            centre=true_or_false(asked["centre"], "centre", error=DictionaryError),
            steps=steps,
            batch_size=whole["batch_size"],
            rate=rate,
            warm_up=max(1, steps // 20),
            decay=0.25,
            settle=0.2,
            bandwidth=_above_0(asked["bandwidth"], "bandwidth"),
            dead_after=_whole(dead, "dead_after", 0),
            revive=_share(asked["revive"], "revive"),
            seed=whole["seed"],
        )

    def as_data(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)

    def differences(self, there: Mapping[str, object]) -> list[str]:
        """What a checkpoint was asked differently, in words."""
        here = self.as_data()
        names = [field.name for field in fields(self)]
        return [f"{n}: {there.get(n)!r} there, {here[n]!r} here" for n in names if there.get(n) != here[n]]


def _whole(value: object, name: str, least: int) -> int:
    return whole_number(value, name, least=least, error=DictionaryError)


def _above_0(value: object, name: str) -> float:
    number = finite_number(value, name, error=DictionaryError)
    if number <= 0:
        raise DictionaryError(f"{name} is above 0; given {number:g}")
    return number


def _share(value: object, name: str) -> float:
    number = finite_number(value, name, error=DictionaryError)
    if number < 0:
        raise DictionaryError(f"{name} is not below 0; given {number:g}")
    return number


def _sparsity(architecture: str, asked: Mapping[str, object], features: int) -> tuple[float | None, float | None]:
    """l0 and sparsity, of which one is given. DictionaryError for both, none, or one that the architecture does not take."""
    given = [name for name in ("l0", "sparsity") if asked[name] is not None]
    takes = _TAKES[architecture]
    if len(given) != 1 or given[0] not in takes:
        what = {
            "l0": "l0, how many features are active at a position",
            "sparsity": "sparsity, the coefficient of its penalty",
        }
        raise DictionaryError(
            f"{architecture!r} takes {', or '.join(what[name] for name in takes)}; given {' and '.join(given) or 'neither'}"
        )
    number = _above_0(asked[given[0]], given[0])
    if given[0] == "l0" and not (number <= features and (architecture != TOP_K or number == int(number))):
        kind = "a whole number of features" if architecture == TOP_K else "a number"
        raise DictionaryError(f"l0 is {kind} above 0, and at most {features}; given {short_repr(asked['l0'])}")
    return (number, None) if given[0] == "l0" else (None, number)


def _of_transcoders(site: str, asked: Mapping[str, object]) -> tuple[bool, str | None, str]:
    """skip, input_site and output_site. DictionaryError for an autoencoder that is given one."""
    skip = true_or_false(asked["skip"], "skip", error=DictionaryError)
    given, written = asked["input_site"], one_of(asked["output_site"], "output_site", OUTPUT_SITES, error=DictionaryError)
    read = None if given is None else one_of(given, "input_site", INPUT_SITES, error=DictionaryError)
    if site != TRANSCODER and (skip or read is not None or written != "mlp_out"):
        raise DictionaryError(f"skip, input_site and output_site are of transcoders; this is of {site!r}: leave them out")
    return skip, read, written


def schedule(step: int, steps: int, warm_up: int, decay: float) -> float:
    """The learning rate's share of its peak: a linear warm-up, a plateau, and a linear decay to zero.

    warm_up: in steps. decay: as a share of all steps, at the end.
    """
    return min(1.0, (step + 1) / warm_up, (steps - step) / (decay * steps))
