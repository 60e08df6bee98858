"""Which call of which run this is, read off the timestep that the UNet is called at."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class RunPosition:
    """Where a run stands in its sampler's list of timesteps.

    Every scheduler makes a new `timesteps` tensor in `set_timesteps`, so its identity marks a run, and pipelines call the
    UNet with elements of that very tensor: their place follows from where they lie in it, which asks nothing of a GPU.
    Only a timestep from elsewhere is compared by its value.

    Attributes:
        timesteps: The scheduler's, of all calls of a whole run; None before any run.
        first: Place of the run's first call: image-to-image and refiners start late.
        next: Place of the coming call.
        end: Place after the run's last call.
        own: Whether the run is called with elements of `timesteps`.
    """

    timesteps: torch.Tensor | None = None
    values: list[float] = field(default_factory=list)
    first: int = 0
    next: int = 0
    end: int = 0
    own: bool = True

    def coming(self, timesteps: torch.Tensor, timestep: torch.Tensor | float) -> tuple[int, bool] | None:
        """The place of a call at `timestep` if it is the next one of this run, and whether that is certain; or None.

        It is certain where the run is called with elements of its own list, whatever the scheduler's is by now, as where another
        pipeline has used the scheduler within a callback. A mere number another run may have as well; also a run that is called
        with elements may come to it, as when a hook that copies the arguments is put on or taken off within the run.

        Args:
            timesteps: The scheduler's, by now.
            timestep: The call's.
        """
        if self.timesteps is None or self.next >= self.end:
            return None
        index = index_in(timestep, self.timesteps)
        if index is not None:
            return (index, self.own) if index == self.next else None
        if timesteps is not self.timesteps:
            return None
        value, place = value_of(timestep), self.next
        # A value that the list holds twice does not say at which of its two places a late run has begun.
        if not self.own and place == self.first + 1 < self.end - 1 and self.values[place] == self.values[self.first] and not is_close(value, self.values[place]):
            place += 1
        return (place, False) if is_close(value, self.values[place]) else None

    def is_at(self, place: int, timestep: torch.Tensor | float) -> bool:
        """Whether a call at `timestep` is one at a place of this run."""
        if self.timesteps is None or not self.first <= place < self.end:
            return False
        index = index_in(timestep, self.timesteps)
        return index == place if index is not None else is_close(value_of(timestep), self.values[place])

    def begun(self, timesteps: torch.Tensor, timestep: torch.Tensor | float) -> RunPosition | None:
        """A new run whose first call is at `timestep`; None where none can begin there.

        With a new list a run may begin anywhere. With the same list again it begins where the list or the last run began, or,
        after the last run's end, at any place but that of the call just made.
        """
        new = timesteps is not self.timesteps
        values = [float(t) for t in timesteps.tolist()] if new else self.values
        index = index_in(timestep, timesteps)
        if index is None:
            value = value_of(timestep)
            places = [i for i, v in enumerate(values) if is_close(value, v)]
        else:
            places = [index]
        over = self.next >= self.end
        places = [p for p in places if new or p in (0, self.first) or (over and p != self.next - 1)]
        return RunPosition(timesteps, values, places[0], places[0], len(values), index is not None) if places else None


def index_in(timestep: torch.Tensor | float, timesteps: torch.Tensor) -> int | None:
    """The place of an element of `timesteps`, told by where it lies in memory; None for anything else."""
    if not isinstance(timestep, torch.Tensor) or timestep.device != timesteps.device or timestep.dtype != timesteps.dtype:
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    index, rest = divmod(int(timestep.storage_offset() - timesteps.storage_offset()), max(1, timesteps.stride(0)))
    return index if not rest and 0 <= index < len(timesteps) else None


def value_of(timestep: torch.Tensor | float) -> float:
    """The timestep as a number; of a batch the first. On an accelerator this waits for the device."""
    return float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)


def is_close(value: float, listed: float) -> bool:
    """Whether a timestep is one of a list by its value."""
    # Timesteps may have gone through half precision; those of a sampler are at least 1 in 1000 apart.
    return abs(value - listed) < 1e-3 * max(1.0, abs(listed))
