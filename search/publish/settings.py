"""Keys of what a search publishes: its runs in MLflow, its winners in the registry."""

from __future__ import annotations

from dataclasses import dataclass

from dato.mlflow_store import check_address
from dato.sources import holds_credentials
from search.fields import check, limited


class PublishError(ValueError):
    """An address that is not allowed: the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """The keys of `mlflow`."""

    enabled: bool = True
    """False: no tracking and no registry, JSON files only."""
    uri: str | None = None
    """Tracking URI; null for MLFLOW_TRACKING_URI or MLflow's default, sqlite:///mlflow.db in this folder."""
    children: str = limited("all", among=("all", "front", "none"))
    """Candidates with a run of their own: all, front (at the end) or none."""
    flush_s: float = limited(60, least=0)
    """Seconds that the end of a search waits at most until MLflow has everything; dato sync completes what is missing."""
    experiment: str = "dato"
    """Experiment name."""

    def __post_init__(self) -> None:
        check(self, "mlflow")
        if self.uri and holds_credentials(self.uri):
            raise PublishError(
                "mlflow.uri holds a password or token, which would be written into the ledger; leave mlflow.uri null and set the environment variable "
                "MLFLOW_TRACKING_URI (or MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
            )
        if self.uri:
            check_address(self.uri, "mlflow.uri")


@dataclass(frozen=True, kw_only=True)
class RegistrySettings:
    """The keys of `registry`."""

    name: str = "dato"
    """Registered model that the winners become versions of."""
    replace: bool = False
    """True: aliases move to this search's winners even from versions with more evidence or better values."""

    def __post_init__(self) -> None:
        check(self, "registry")
