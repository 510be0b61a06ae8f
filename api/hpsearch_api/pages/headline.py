"""The conclusion of a study in words: whether its best lies at a border, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hpsearch.advancing import ACTED_ON
from hpsearch_api.figures.style import compact
from hpsearch_api.pages.formats import plural

View = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Headline:
    """What stands behind "Best val_accuracy 0.531 at lr 9.5e-4".

    Attributes:
        conclusion: where that is, and how sure; empty if there is nothing to say yet.
        advice: what to do about it; empty if nothing.
        tone: ``act`` where the user should, ``good`` where the result stands, else ``plain``.
    """

    conclusion: str
    advice: str = ""
    tone: Literal["act", "good", "plain"] = "plain"


def headline(study: View, flags: Sequence[View] | None) -> Headline:
    """The conclusion of a study's document.

    Args:
        study: as the interface gives it.
        flags: of the study, the latest stage first; None where they are not known yet.
    """
    if study["best"] is None:
        return Headline(_nothing_yet(study))
    sure = _how_sure(study["best"])
    if flags is None:
        return Headline(sure)
    flag = _open_flag(study, flags)
    if flag is not None:
        side = "upper" if flag["side"] == "high" else "lower"
        p_value = f"p = {compact(float(format(flag['p_value'], '.2g')))}"
        if flag["verdict"] == "widen":
            conclusion = f"{flag['parameter']} lies at the {side} border of its range, {p_value}."
            end = compact(flag["proposed"][flag["side"]])
            return Headline(_joined(sure, conclusion), f"Widen {flag['parameter']} to {end}.", "act")
        conclusion = (
            f"{flag['parameter']} lies at the {side} end of what trains, before a cliff of diverged trials, {p_value}."
        )
        return Headline(_joined(sure, conclusion), "Warm up, clip gradients or lower lr rather than widen.", "act")
    if study["state"] == "completed":
        known = _no_open_flag(flags)
        return Headline(_joined(sure, known[0].upper() + known[1:] if sure else known), tone="good")
    return Headline(sure)


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _nothing_yet(study: View) -> str:
    ended = {state: n for state, n in study["counts"].items() if n and state in ("diverged", "failed", "pruned")}
    if not ended:
        return "No trial has completed yet."
    return "No trial has completed yet: " + ", ".join(f"{n:,} {state}" for state, n in ended.items()) + "."


def _how_sure(best: View) -> str:
    """What the confirm stage says of the winner; empty before it."""
    if best["n"] is None:
        return ""
    chance = best["probability_best"]
    seeds = f"mean of {plural(best['n'], 'fresh seed')}"
    return f"{seeds}; no other finalist is better with probability {chance:.2f}." if chance is not None else f"{seeds}."


def _open_flag(study: View, flags: Sequence[View]) -> View | None:
    """The first flag that asks for something, and that neither a user nor a later stage has acted on."""
    extended = {stage["parent"] for stage in study["stages"] if stage["extension"]}
    for flag in flags:
        asks = flag["verdict"] in ("widen", "unstable_edge") and flag["level"] in ACTED_ON
        if asks and flag["acknowledged"] is None and flag["stage"] not in extended and _is_there_still(study, flag):
            return flag
    return None


def _is_there_still(study: View, flag: View) -> bool:
    """Whether the stages since then end at that border, too: one that ends before it has left the border behind."""
    name, side = flag["parameter"], flag["side"]
    index = next(stage["index"] for stage in study["stages"] if stage["name"] == flag["stage"])
    ends = [
        s["space"][name][side] for s in study["stages"][index:] if s["spec"].get("top") is None and name in s["space"]
    ]
    return all(end == ends[0] for end in ends)


def _no_open_flag(flags: Sequence[View]) -> str:
    if not flags:
        return "inside its ranges, no border is flagged."
    return "no border asks for more: the flags are acted on, acknowledged, left behind, or by nature."
