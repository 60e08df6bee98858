"""How a model's forward is exchanged, undone exactly and copied, beside whatever else hooks it.

diffusers' HookRegistry chains hooks; accelerate keeps the forward that it wraps as `_old_forward`, and pipelines with model
offloading take accelerate's hooks off and put them on again at the end of every call, which keeps only what lies beneath. So
a hook of ours goes beneath accelerate's, whichever came first. Other tools keep a model's forward and put one of their own
around it: a forward of ours lives as long as they hold it, so it can be switched off, and on again, where it lies.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

HOOK = "dato"
_SLOTS = ("forward", "_old_forward")

Place = tuple[dict[str, nn.Module | None], str, nn.Module]
"""Where a module hangs: the modules of its parent, its name among them, and itself."""


class _Forward:
    """A model's forward that goes through a hook, or where that is off straight to the forward beneath.

    An object of its own, so that a deep copy of the model has a forward of its own.
    """

    __slots__ = ("__weakref__", "beneath", "hook", "module")

    def __init__(self, hook: Any, module: nn.Module) -> None:
        self.hook, self.module, self.beneath = hook, module, hook.fn_ref.forward

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # inspect.signature follows it
        return self.beneath if self.hook is None else self.hook.fn_ref.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.beneath(*args, **kwargs) if self.hook is None else self.hook.new_forward(self.module, *args, **kwargs)


_HELD: weakref.WeakKeyDictionary[nn.Module, weakref.ref[_Forward]] = weakref.WeakKeyDictionary()
"""Forwards of ours that are off, and in the hands of another tool, by their model."""


class HookedModel:
    """A hook on a model's forward, from its making until `undo`.

    Args:
        module: The model.
        hook: Has a `new_forward`, which finds the forward beneath as ``fn_ref.forward``.
    """

    def __init__(self, module: nn.Module, hook: ModelHook) -> None:
        self.module, self.hook = module, hook
        own = vars(module)
        self.had_forward, self.undone = "forward" in own, False
        registry = HookRegistry.check_if_exists_or_initialize(module)
        slot = "_old_forward" if "_old_forward" in own else "forward"
        held, outer = held_forward(module), own.get("forward")
        around = own.get(slot)
        if held is not None:
            own["forward"] = held.beneath
        elif slot != "forward":
            own["forward"] = around
        try:
            registry.register_hook(hook, HOOK)
            # Of the two the registry brings `forward` up to date when it removes a hook beneath.
            hook.fn_ref.forward, hook.fn_ref.original_forward = hook.fn_ref.original_forward, None
            if held is not None:
                self.forward, held.hook = held, hook
                del _HELD[module]
                own[slot] = around
                for order in (registry._hook_order, registry._fn_refs):  # what was hooked around that tool is above
                    order.insert(0, order.pop())
            else:
                self.forward = own[slot] = _Forward(hook, module)
        finally:
            if slot != "forward" or held is not None:
                own["forward"] = outer

    def reached(self) -> Literal["yes", "no", "perhaps"]:
        """Whether a call of the model still comes to the hook; "perhaps" where another tool has put a forward of its own there."""
        own = vars(self.module)
        registry = own.get("_diffusers_hook")
        references = registry._fn_refs if registry is not None else ()
        if any(own.get(slot) is self.forward for slot in _SLOTS) or any(self.forward in (r.forward, r.original_forward) for r in references):
            return "yes"
        return "perhaps" if foreign_forwards(self.module) else "no"

    def undo(self) -> None:
        """Take the hook off and leave every other one where it is; a second time nothing."""
        if self.undone:
            return
        self.undone = True
        if self.reached() == "perhaps":
            _HELD[self.module] = weakref.ref(self.forward)
        own = vars(self.module)
        registry = own["_diffusers_hook"]
        beneath = self.hook.fn_ref.forward
        slots = {slot: beneath if own[slot] is self.forward else own[slot] for slot in _SLOTS if slot in own}
        links = [(r, *(beneath if f is self.forward else f for f in (r.forward, r.original_forward))) for r in registry._fn_refs]
        registry.remove_hook(HOOK, recurse=False)
        # The registry joins what its own order has before and after; accelerate's hook may lie between.
        for link, forward, original in links:
            link.forward, link.original_forward = forward, original
        own.update(slots)
        self.forward.beneath, self.forward.hook = beneath, None
        if not registry.hooks:
            del self.module._diffusers_hook
        plain = getattr(own.get("forward"), "__func__", None) is type(self.module).forward
        if plain and not self.had_forward:
            del self.module.forward  # the registry leaves the class's forward behind as an attribute of the instance


def held_forward(module: nn.Module) -> _Forward | None:
    """The forward of ours that was switched off in the hands of another tool, where that tool is still there."""
    held = _HELD.get(module)
    return held() if held is not None and foreign_forwards(module) else None


def foreign_forwards(module: nn.Module) -> list[Callable[..., Any]]:
    """The forwards on a model that are neither its class's own, nor ours, nor what diffusers or accelerate make for their hooks."""
    own = vars(module)
    registry = own.get("_diffusers_hook")
    there = [own[slot] for slot in _SLOTS if slot in own]
    there += [r.forward if r.original_forward is None else r.original_forward for r in (registry._fn_refs if registry is not None else ())]
    return [f for f in there if not _known(f, module)]


def name_of(made: Any) -> str:
    """A forward, or what made it, by its module and name."""
    code = getattr(made, "__code__", None)  # where functools.wraps was used, the name is that of what is wrapped
    if code is not None:
        return f"{made.__globals__.get('__name__')}.{code.co_qualname}"
    kind = made if isinstance(made, type) else type(made)
    return f"{kind.__module__}.{kind.__qualname__}"


def _known(forward: Any, module: nn.Module) -> bool:
    if isinstance(forward, _Forward):
        return forward.module is module
    if getattr(forward, "__self__", None) is module:
        return any(vars(kind).get("forward") is forward.__func__ for kind in type(module).__mro__)
    maker = getattr(getattr(forward, "func", None), "__module__", None)  # both make partials of a function of their own
    return maker in ("accelerate.hooks", "diffusers.hooks.hooks")


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
