"""What tokens cost on a machine of one's own and hosted, and from where on the own one is cheaper. Pure.

An own machine costs the same whether it works or not; a hosted model costs per token. So the usual break-even holds:
fixed cost divided by what each unit would cost elsewhere. With

    G   US dollars an hour of the machine (the price of a GPU hour times the GPUs it takes)
    I,O prompt and output tokens an hour at full load, in the mix of the requests
    p,q hosted price of a million prompt and output tokens
    u   utilisation: the share of the hour in which the machine is busy at that full load, 0 to 1

the machine makes u·(I+O) tokens an hour for G, and hosted the same tokens cost u·(I·p + O·q)/10^6. Both are equal at
u* = G / ((I·p + O·q)/10^6). Above it local is cheaper; where u* is above 1 it never is, however busy the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.catalogue import Catalogue, Model, Price

HOUR_S = 3600.0
MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Flow:
    """Tokens a second."""

    prompt: float
    output: float

    @property
    def total(self) -> float:
        return self.prompt + self.output


def local_per_million(hour_usd: float, full: Flow, utilisation: float = 1.0) -> float:
    """US dollars a million tokens of the mix `full` on a machine that is busy for this share of the hour."""
    return hour_usd / (full.total * HOUR_S * utilisation) * MILLION


def hosted_per_million(price: Price, mix: Flow) -> float:
    """US dollars a million tokens of this mix at list price; nothing is read from a cache."""
    return (mix.prompt * price.input + mix.output * price.output) / mix.total


def break_even(hour_usd: float, full: Flow, price: Price) -> float | None:
    """The utilisation at which both cost the same; above 1 local is never cheaper. None for a free hosted model."""
    hosted_hour = (full.prompt * price.input + full.output * price.output) * HOUR_S / MILLION
    return hour_usd / hosted_hour if hosted_hour > 0 else None


def separate(one: Flow, other: Flow) -> Flow | None:
    """Tokens a second if the machine did nothing but read prompts, and nothing but write: `costs.throughput`.

    A busy second is taken to be spent as prompt/input + output/output = 1, that is, each token takes its own time and
    the times add up. Two flows measured at full load, one heavy in prompts and one heavy in output, give both. None
    where the two cannot be told apart, or noise makes one of them negative.
    """
    determinant = one.prompt * other.output - other.prompt * one.output
    if determinant == 0:
        return None
    per_prompt = (other.output - one.output) / determinant
    per_output = (one.prompt - other.prompt) / determinant
    return Flow(1 / per_prompt, 1 / per_output) if per_prompt > 0 and per_output > 0 else None


def busy(flow: Flow, alone: Flow) -> float:
    """The share of a second that `flow` takes by the model of `separate`: near 1 where it was measured at full load."""
    return flow.prompt / alone.prompt + flow.output / alone.output


def compared(found: Catalogue, local: Model | None, mix: Flow, wanted: Sequence[str] = ()) -> list[Model]:
    """The hosted models to compare with, enabled or not; `wanted` names them.

    Otherwise: the same open model hosted (else one of its family), the one the settings name, and the cheapest and the
    dearest of the lane frontier. Raises ConfigError for a name that is not there.
    """
    if wanted:
        return [found.find(name) for name in wanted]
    priced = [m for m in found.models.values() if m.place == "hosted" and m.price is not None]
    priced.sort(key=lambda m: _price(m, mix))
    chosen = []
    if local is not None:
        same = [m for m in priced if m.same_as in (local.name, local.same_as) and m.same_as]
        chosen += (same or [m for m in priced if local.family and m.family == local.family])[:1]
    chosen += [m for m in priced if m.name == found.site.costs.frontier]
    frontier = [m for m in priced if "frontier" in m.lanes]
    chosen += [*frontier[:1], *frontier[-1:]]
    return sorted({m.name: m for m in chosen}.values(), key=lambda m: _price(m, mix))


def _price(model: Model, mix: Flow) -> float:
    assert model.price is not None
    return hosted_per_million(model.price, mix)
