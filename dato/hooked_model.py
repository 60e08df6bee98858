"""How a model's forward is exchanged, undone exactly and copied, beside whatever else hooks it.

diffusers' HookRegistry chains hooks; accelerate keeps the forward that it wraps as `_old_forward`, and pipelines with model
offloading take accelerate's hooks off and put them on again at the end of every call, which keeps only what lies beneath. So
a hook of ours goes beneath accelerate's, whichever came first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

HOOK = "dato"
_SLOTS = ("forward", "_old_forward")

Place = tuple[dict[str, nn.Module | None], str, nn.Module]
"""Where a module hangs: the modules of its parent, its name among them, and itself."""


class _Forward:
    """A model's forward that goes through a hook. An object of its own, so that a deep copy of the model has a forward of its own."""

    __slots__ = ("__wrapped__", "hook", "module")

    def __init__(self, hook: Any, module: nn.Module, forward: Callable[..., Any]) -> None:
        self.hook, self.module, self.__wrapped__ = hook, module, forward  # inspect.signature follows __wrapped__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook.new_forward(self.module, *args, **kwargs)


class HookedModel:
    """A hook on a model's forward, from its making until `undo`.

    Args:
        module: The model.
        hook: Has a `new_forward`, which finds the forward beneath as ``fn_ref.original_forward``.
    """

    def __init__(self, module: nn.Module, hook: ModelHook) -> None:
        self.module = module
        own = vars(module)
        self.had_forward, self.undone = "forward" in own, False
        registry = HookRegistry.check_if_exists_or_initialize(module)
        outer = own.get("forward") if "_old_forward" in own else None
        if outer is not None:
            module.forward = own["_old_forward"]
        try:
            registry.register_hook(hook, HOOK)
            self.original = hook.fn_ref.original_forward
            self.forward = _Forward(hook, module, self.original)
            module.forward = self.forward
        finally:
            if outer is not None:
                own["_old_forward"], module.forward = module.forward, outer

    def reachable(self) -> bool:
        """Whether a call of the model still comes to the hook."""
        own = vars(self.module)
        registry = own.get("_diffusers_hook")
        references = registry._fn_refs if registry is not None else ()
        return any(own.get(slot) is self.forward for slot in _SLOTS) or any(self.forward in (r.forward, r.original_forward) for r in references)

    def undo(self) -> None:
        """Take the hook off and leave every other one where it is; a second time nothing."""
        if self.undone:
            return
        self.undone = True
        own = vars(self.module)
        registry = own["_diffusers_hook"]
        slots = {slot: self._beneath(own[slot]) for slot in _SLOTS if slot in own}
        links = [(r, self._beneath(r.forward), self._beneath(r.original_forward)) for r in registry._fn_refs]
        registry.remove_hook(HOOK, recurse=False)
        # The registry joins what its own order has before and after; accelerate's hook may lie between.
        for link, forward, original in links:
            link.forward, link.original_forward = forward, original
        own.update(slots)
        if not registry.hooks:
            del self.module._diffusers_hook
        plain = getattr(own.get("forward"), "__func__", None) is type(self.module).forward
        if plain and not self.had_forward:
            del self.module.forward  # the registry leaves the class's forward behind as an attribute of the instance

    def _beneath(self, forward: Any) -> Any:
        return self.original if forward is self.forward else forward


def hook_of(module: Any) -> ModelHook | None:
    """Our hook on a model, or None."""
    registry = getattr(module, "_diffusers_hook", None)
    return registry.get_hook(HOOK) if registry is not None else None


def places_of(root: nn.Module, modules: Iterable[nn.Module]) -> list[Place]:
    """Where these modules hang, with everything between them and the root."""
    wanted = {id(m) for m in modules}

    def walk(parent: nn.Module) -> list[Place]:
        found: list[Place] = []
        for name, child in parent._modules.items():
            if child is None:
                continue
            below = walk(child)
            if below or id(child) in wanted:
                found += [(parent._modules, name, child), *below]
        return found

    return walk(root)


def in_place(places: Iterable[Place]) -> bool:
    """Whether every module still hangs where it did: adding a LoRA adapter to a convolution, for one, exchanges it."""
    return all(siblings.get(name) is module for siblings, name, module in places)
