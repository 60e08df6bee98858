"""What the hooks on a UNet and on a transformer have in common: whose they are, which runs they follow, and how they are reached."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import torch
from diffusers.hooks import ModelHook
from torch import nn

from dato.caller import guides, reference
from dato.hooked_model import HookedModel, foreign_forwards, name_of
from dato.options import Options
from dato.refusals import refuse_unknown_guidance
from dato.report import RunReport
from dato.runs import Runs
from dato.scheduler import SchedulerExchange
from dato.strategy import Strategy


class StrategyHook(ModelHook, ABC):
    """Runs a denoising model by a strategy, whichever pipeline calls it.

    Args:
        pipe: The pipeline that it is enabled on: its owner.
        model: The pipeline's UNet or transformer.
        strategy: One entry per sampler step.
        options: How tokens are chosen.
        exchange: Of the pipeline's scheduler; None where the strategy has no sampler.

    Attributes:
        runs: The runs of the model.
        hooked: The model with this hook on; None where it is off.
        undo: What takes all that is hooked off again, but what `detach` does.
    """

    _is_stateful = True
    noun: ClassVar[str]
    """What the model is called in messages."""
    copied: ClassVar[tuple[str, ...]] = ()
    """Further attributes that a deep copy has copies of."""

    def __init__(self, pipe: Any, model: nn.Module, strategy: Strategy, options: Options, exchange: SchedulerExchange | None = None) -> None:
        super().__init__()
        self.owner, self.strategy, self.options, self.exchange = reference(pipe), strategy, options, exchange
        self.hooked: HookedModel | None = None
        self.undo: list[Callable[[], None]] = []
        self.begin(model)

    def begin(self, model: nn.Module) -> None:
        """Set up what belongs to no copy: locks, what was compiled, runs."""
        self._lock = threading.RLock()  # one call at a time: what a call keeps is the model's, and threads may share it
        self._expected: set[int] = set()  # threads in a call of the model that has not come here yet
        self.forget(model)

    @property
    @abstractmethod
    def model(self) -> Any:
        """The UNet or transformer."""

    @property
    @abstractmethod
    def pruning(self) -> tuple[str, ...]:
        """Names of the attention layers that prune."""

    @abstractmethod
    def read_layers(self) -> None:
        """Follow modules that were exchanged since; hooks nothing yet."""

    @abstractmethod
    def attach(self) -> None:
        """Hook the model's layers."""

    @abstractmethod
    def detach(self) -> None:
        """Undo `attach`; a second time nothing."""

    @staticmethod
    @abstractmethod
    def refuse_compiled(model: Any, /) -> None:
        """Raise ValueError for a model that is compiled in a way that no strategy can follow."""

    @abstractmethod
    def refuse(self, pipe: Any) -> None:
        """Raise ValueError for a pipeline that cannot follow the strategy: the enabled one, or one that runs on the model."""

    def refuse_run(self, pipe: Any, told: bool | None) -> None:
        """`refuse`, and a run of which it is not known whether it guides, where that matters; `told` is what it says itself."""
        self.refuse(pipe)
        said = guides(pipe)
        refuse_unknown_guidance(pipe, told if said is None else said, self.strategy, self.options)

    @abstractmethod
    def refuse_other_tools(self) -> None:
        """Raise ValueError where another tool runs the model in its own way."""

    @abstractmethod
    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's call, as its strategy entry says."""

    @property
    def report(self) -> RunReport:
        """Of the run that called the model last."""
        if self.runs.last is not None:
            return self.runs.last.report
        return self._reported or RunReport(self.strategy, self.pruning, model=self.noun)

    def forget(self, model: nn.Module) -> None:
        """Forget every run, and what was reported."""
        self._reported: RunReport | None = None
        self.runs = Runs(self.owner, model, self.strategy, self.options, self.refuse_run, self.noun)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget every run but its report; diffusers calls this when asked to reset stateful hooks, as some pipelines do at the end of a run."""
        reported = self.report
        self.forget(module)
        self._reported = reported
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> StrategyHook:
        """For a deep copy of the model: the same strategy, without any run, owned by the copy of the pipeline where that is copied too."""
        new = memo[id(self)] = type(self).__new__(type(self))
        ModelHook.__init__(new)
        owner = memo.get(id(self.owner()))
        new.owner = reference(owner) if owner is not None else _nobody
        new.strategy, new.options = self.strategy, self.options
        for name in ("fn_ref", "hooked", "undo", "exchange", *self.copied):
            setattr(new, name, copy.deepcopy(getattr(self, name), memo))
        new.begin(copy.deepcopy(self.model, memo))  # where a part of the model is copied first, what was read of it is not complete yet
        return new

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "an accelerated pipeline cannot be pickled: call dato.disable(pipe) before, and dato.enable(pipe, strategy) on what is loaded. "
            "A copy.deepcopy of it works"
        )

    def require_reachable(self) -> None:
        """Raise RuntimeError where another tool took the strategy away, so that no run is plain without a word."""
        if self.hooked is not None and self.hooked.reached() == "no":
            raise RuntimeError(
                f"the strategy is enabled, but another tool has since put back the {self.noun}'s earlier forward: call dato.enable(pipe, strategy) "
                "again, after that tool, or dato.disable(pipe)"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before_call(self, *_: Any) -> None:
        """Before each call of the model: `require_reachable`, and expect the call here."""
        self.require_reachable()
        self._expected.add(threading.get_ident())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after_call(self, *_: Any) -> None:
        """After each call of the model: raise RuntimeError where it never came here, as only a forward of another tool can bring about."""
        if threading.get_ident() in self._expected:
            self._expected.discard(threading.get_ident())
            others = ", ".join(name_of(f) for f in foreign_forwards(self.model)[:1])
            raise RuntimeError(
                f"the strategy is enabled, but the call never came to it: another tool has wrapped the {self.noun}'s forward ({others}) and answers "
                "in its place. Call dato.disable(pipe), remove that tool, and call dato.enable(pipe, strategy) again"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """`answer`, one call at a time."""
        self._expected.discard(threading.get_ident())
        with self._lock:
            return self.answer(args, kwargs)

    @property
    def wrapped(self) -> bool:
        """Whether a forward of others may be around the whole model, and calls ours."""
        return self.hooked is not None and self.hooked.reached() == "perhaps"


def _nobody() -> None:
    """The owner of a model that was copied without its pipeline."""
