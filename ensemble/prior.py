"""PriDe (Zheng et al. 2024): a model's preference for an option's label, estimated and divided out.

What is observed is taken to be prior(label) x debiased(option). On questions in all n cyclic orders the mean of the
log-probability over the orders cancels the options, which stood at each label once, and leaves the prior.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensemble.combine import Floats, log_softmax
from ensemble.config import fingerprint
from ensemble.errors import ConfigError, StoreError
from ensemble.files import location, reason, write_atomically
from ensemble.orders import make_orders, positions
from ensemble.records import Order

KEY = ("model", "dtype", "quantization", "chat", "template", "shots")  # of a member's description, see ensemble.plan


def estimate_prior(tables: Floats) -> Floats:
    """[n], the labels' probabilities: per question the softmax of the mean log-probability over the cyclic orders,
    then the mean over questions (section 4.2).

    tables: [Q, n, n] log-probabilities by option, for the cyclic orders in their order; Q >= 1.
    """
    n = tables.shape[-1]
    shown = np.array(make_orders("cyclic", n, 0))
    by_label = np.take_along_axis(tables, np.broadcast_to(shown, tables.shape), axis=-1)
    prior: Floats = np.exp(log_softmax(by_label.mean(axis=-2))).mean(axis=0)
    return prior


def by_option(prior: Floats, orders: tuple[Order, ...]) -> Floats:
    """[orders, n] log of the prior of the label that each option bears."""
    values: Floats = np.log(np.maximum(prior, 1e-12))[positions(orders)]
    return values


class StoredPrior(NamedTuple):
    """Priors of one model and template, by number of options. key: `prior_key`."""

    name: str
    key: str
    priors: Mapping[int, list[float]]


def prior_key(description: Mapping[str, Any]) -> str:
    """What a prior belongs to: the model and the prompt, on whatever chip; of a member's description."""
    return fingerprint({name: description[name] for name in KEY})


def save_prior(path: Path, prior: StoredPrior) -> None:
    """Writes nothing where the same is there already. Raises StoreError."""
    data = json.dumps(prior._asdict(), indent=1).encode()
    try:
        if path.exists() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {reason(e)}; free space or permissions, and try again") from None


def load_prior(path: str, name: str, key: str, options: Iterable[int]) -> dict[int, Floats]:
    """Priors for the member `name`, of at least these numbers of options. Raises ConfigError with the cure."""
    cure = "leave prior out to estimate one here"
    try:
        data = json.loads(location(path).read_text())
        stored = StoredPrior(**data)
        priors = {int(n): np.array(values, dtype=np.float64) for n, values in stored.priors.items()}
    except OSError as e:
        raise ConfigError(f"prior {path}: {reason(e)}; give a file of STORE/priors, or {cure}") from None
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"prior {path}: not a stored prior; give a file of STORE/priors, or {cure}") from None
    if stored.key != key:
        raise ConfigError(f"prior {path} is of {stored.name}, with another model or template than {name}: {cure}")
    if lacking := sorted(set(options) - set(priors)):
        raise ConfigError(f"prior {path}: has none for {', '.join(map(str, lacking))} options: {cure}")
    for n, values in priors.items():
        if values.shape != (n,) or not (values > 0).all() or not abs(float(values.sum()) - 1) < 1e-3:
            raise ConfigError(f"prior {path}: for {n} options it is no distribution over {n} labels: {cure}")
    return priors
