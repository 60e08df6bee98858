"""Where workers on other machines get models from: the driver's settings of the Hugging Face hub, sent to them.

Ray's workers have the environment of the `ray start` of their node, and of the driver's only what a job sends. Its settings of
the hub go along, so that a mirror or offline mode holds everywhere. Tokens do not: what is sent can be read by whoever sees the
cluster's dashboard, so `HF_TOKEN` is set where Ray is started.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

SENT = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_DISABLE_XET")
"""Settings that a job takes along."""


def hub_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The settings of the hub to send with a job; what a submitted job (`ray job submit`) sends itself is left to it, for Ray refuses a key twice.

    Raises:
        ValueError: An address holds a password, which everybody on the cluster could read.
    """
    job = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")  # as ray._private.worker.init reads it
    itself = ((job.get("runtime_env") or {}).get("env_vars") or {}).keys()
    found = {name: environment[name] for name in SENT if environment.get(name) and name not in itself}
    if urlsplit(found.get("HF_ENDPOINT", "")).password or urlsplit(found.get("HF_ENDPOINT", "")).username:
        raise ValueError("HF_ENDPOINT holds a user's name or password, and is sent to every worker; give the address alone, and the token as HF_TOKEN where Ray is started on each node")
    return found
