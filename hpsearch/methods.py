"""How a stage samples and what it stops early: the keys ``sampler`` and ``early_stopping`` of a stage.

Both are a name, or a mapping with the name and options: ``asha`` or ``{name: asha, reduction: 4}``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WrapSerializer,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hpsearch.document import Document, unknown

OWN_SAMPLERS = ("random", "sobol", "halton", "grid")
"""What we sample ourselves: a trial's params depend on seed, stage and number alone."""
OPTUNA_SAMPLERS = {"tpe": "TPESampler", "gp": "GPSampler", "cmaes": "CmaEsSampler"}
"""Short names of Optuna's samplers; any other goes by its class name."""
MAX_LEVELS = 10_000


class Sampler(BaseModel):
    """What draws the params of a stage's trials.

    Attributes:
        name: one of :data:`OWN_SAMPLERS`, or of an Optuna sampler.
        options: what the mapping says beside the name. Those of an Optuna sampler are its constructor's; the server
            checks them when a study is submitted.
    """

    model_config = ConfigDict(frozen=True)

    name: str = "random"
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> Sampler:
        if not self.is_own and not re.fullmatch(r"[A-Za-z]{1,50}Sampler", self.optuna_class):
            known = [*OWN_SAMPLERS, *OPTUNA_SAMPLERS]
            text = unknown(self.name, known, what="sampler")
            raise _fault(f"{text}, or the class name of an Optuna sampler (NSGAIISampler)")
        if self.is_own:
            allowed = ["levels"] if self.name == "grid" else []
            for option in self.options:
                if option not in allowed:
                    hint = unknown(option, allowed, what="option") if allowed else f"{self.name!r} takes no options"
                    raise _fault(hint, option)
        levels = self.options.get("levels")
        for name, n in levels.items() if isinstance(levels, dict) else [("", levels)]:
            if n is not None and not (isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MAX_LEVELS):
                where = f"levels.{name}" if name else "levels"
                raise _fault(f"levels is a whole number from 1 to {MAX_LEVELS:,}, but is {n!r}", where)
        return self

    @model_serializer(mode="plain")
    def _document(self) -> str | dict[str, Any]:
        return {"name": self.name, **self.options} if self.options else self.name

    @property
    def is_own(self) -> bool:
        """Whether it is one of ours."""
        return self.name in OWN_SAMPLERS

    @property
    def optuna_class(self) -> str:
        """The name of the Optuna class that it stands for."""
        return OPTUNA_SAMPLERS.get(self.name, self.name)


def _sampler(data: Any) -> Any:
    """The fields of a sampler as a study says them."""
    if isinstance(data, Sampler):
        return data
    if isinstance(data, str):
        return {"name": data}
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise _fault(f"{data!r} is neither a sampler's name nor a mapping with its name and options")
    return {"name": data["name"], "options": {str(key): value for key, value in data.items() if key != "name"}}


StageSampler = Annotated[Sampler, BeforeValidator(_sampler)]


class NoStopping(Document):
    """Every trial trains to its last epoch."""

    name: Literal["none"] = "none"


class Asha(Document):
    """Asynchronous successive halving: at epochs ``min_epochs · reduction^k`` the best ``1/reduction`` go on."""

    name: Literal["asha"] = "asha"
    reduction: Annotated[int, Field(ge=2, le=100)] = 3
    min_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 1

    @property
    def first_epoch(self) -> int:
        """The first epoch after which it may stop a trial."""
        return self.min_epochs


class Hyperband(Document):
    """Brackets of successive halving, each beginning a rung later than the one before it."""

    name: Literal["hyperband"] = "hyperband"
    reduction: Annotated[int, Field(ge=2, le=100)] = 3
    min_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 1

    @property
    def first_epoch(self) -> int:
        """The first epoch after which it may stop a trial."""
        return self.min_epochs


class MedianRule(Document):
    """Stop a trial whose best so far is worse than the median of the others' running means at the same epoch."""

    name: Literal["median"] = "median"
    warmup_epochs: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """No trial is stopped in these."""
    min_trials: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """So many others must have come to an epoch before it decides."""

    @property
    def first_epoch(self) -> int:
        """The first epoch after which it may stop a trial."""
        return self.warmup_epochs + 1


class Patience(Document):
    """End a trial that for ``epochs`` epochs has not become better by more than ``min_delta``."""

    name: Literal["patience"] = "patience"
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def first_epoch(self) -> int:
        """The first epoch after which it may stop a trial."""
        return self.epochs + 1


class Threshold(Document):
    """Stop a trial that has not come to a value of the metric by an epoch: one pair, or several as ``at``."""

    name: Literal["threshold"] = "threshold"
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    after: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    at: (
        Annotated[
            list[tuple[Annotated[int, Field(ge=1)], Annotated[float, Field(allow_inf_nan=False)]]],
            Field(min_length=1, max_length=1000),
        ]
        | None
    ) = None
    """``[[epoch, value], …]``, epochs rising: from each of these epochs to the next, its value is asked for."""

    @model_validator(mode="after")
    def _check(self) -> Threshold:
        if (self.value is None) == (self.at is None):
            raise _fault("threshold needs value (with after), or at with pairs of epoch and value: give one of them")
        epochs = [epoch for epoch, _ in self.at or []]
        if epochs != sorted(set(epochs)):
            raise _fault(f"the epochs {epochs} do not rise: give each epoch once, in order", "at")
        return self

    @property
    def pairs(self) -> list[tuple[int, float]]:
        """Epochs, rising, each with the value that is asked for from it on."""
        return self.at or [(self.after, self.value or 0.0)]

    @property
    def first_epoch(self) -> int:
        """The first epoch after which it may stop a trial."""
        return self.pairs[0][0]


def _named(data: Any) -> Any:
    return {"name": data} if isinstance(data, str) else data


def _document(rule: BaseModel, handler: SerializerFunctionWrapHandler) -> Any:
    """The name alone where nothing else was said."""
    return rule.name if not rule.model_fields_set - {"name"} else handler(rule)  # type: ignore[attr-defined]


Halving = Asha | Hyperband
"""Rules with rungs, which stop a trial for now: it may be promoted later."""

EarlyStopping = Annotated[
    NoStopping | Asha | Hyperband | MedianRule | Patience | Threshold,
    Field(discriminator="name"),
    BeforeValidator(_named),
    WrapSerializer(_document),
]


def _fault(text: str, loc: str = "") -> PydanticCustomError:
    return PydanticCustomError("study", "{text}", {"text": text, "loc": loc})
