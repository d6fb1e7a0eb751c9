"""What a member says about options as normalised log-probabilities. Vectorised: leading axes are questions."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.combine import Floats, log_softmax
from ensemble.config import Cloze, Letter, Member

Numbers = npt.NDArray[Any]


def normalise(
    member: Member, logprobs: Numbers, lengths: Floats, bare: Numbers | None = None, log_prior: Floats | None = None
) -> Floats:
    """[..., orders, n] log-probabilities that sum to one over the options.

    logprobs: [..., orders, n] as stored. lengths: [..., n], see `divisors`. bare: [..., n] the options' log-probability
    without the question, for PMI. log_prior: [orders, n] of the labels, for PriDe (Zheng et al. 2024, equation 6).
    """
    table = logprobs.astype(np.float64)
    if isinstance(member.scoring, Cloze):
        if is_pmi(member):
            assert bare is not None
            table = table - bare[..., None, :].astype(np.float64)
        else:
            table = table / lengths[..., None, :]
    table = log_softmax(table)
    if log_prior is not None:
        table = log_softmax(table - log_prior)
    temperature = member.scoring.temperature if isinstance(member.scoring, Letter | Cloze) else 1.0
    return table if temperature == 1.0 else log_softmax(table / temperature)


def divisors(member: Member, tokens: Numbers, characters: Numbers) -> Floats:
    """[..., n] what each option's summed log-probability is divided by, from its tokens and its characters."""
    if isinstance(member.scoring, Cloze):
        if member.scoring.normalisation == "token":
            return np.asarray(tokens, dtype=np.float64)
        if member.scoring.normalisation == "char":  # as lm-evaluation-harness's acc_norm counts
            return np.asarray(characters, dtype=np.float64)
    return np.ones(np.shape(tokens))


def is_pmi(member: Member) -> bool:
    return isinstance(member.scoring, Cloze) and member.scoring.normalisation == "pmi"


def error_bound(member: Member, tokens: Numbers, lengths: Floats, orders: int) -> Floats:
    """[n] how a numerical error of 1 in each token's log-probability adds up, tokens and orders being independent."""
    if isinstance(member.scoring, Cloze):
        bound: Floats = np.sqrt(tokens) / (lengths * member.scoring.temperature)
        return bound
    temperature = member.scoring.temperature if isinstance(member.scoring, Letter) else 1.0
    return np.full(np.shape(tokens), 1 / (math.sqrt(orders) * temperature))
