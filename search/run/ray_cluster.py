"""Joining Ray: a cluster of this machine alone or a running one, and whose code its workers run."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services

from search.run import interrupt
from search.run.hub_environment import hub_environment
from search.run.leftovers import end_left_behind, noted

CONNECT_S = 10
"""Seconds to reach an address."""
CODE = ("installed", "upload")
_PACKAGES = ("dato", "search")
"""What a worker imports."""
_ROOT = Path(__file__).parents[2]


class ClusterError(RuntimeError):
    """A cluster that cannot be joined: the message says why and what to do."""


def connect(address: str | None, *, cpus: float = 1, code: str = "installed") -> None:
    """Join the cluster at `address`, or start Ray on this machine alone with `cpus` CPUs where it is None.

    With `code` "upload", this process's packages are sent to every worker of the job; to a running cluster, its settings of the hub
    in any case (see `search.run.hub_environment`).

    Raises:
        ClusterError: Within seconds, where nothing answers there, its Ray or Python is another version, or Ray does not start.
    """
    sent: dict[str, Any] = {"py_modules": [str(_ROOT / name) for name in _PACKAGES]} if code == "upload" else {}
    try:
        if address is not None and (settings := hub_environment()):
            sent["env_vars"] = settings
    except ValueError as error:
        raise ClusterError(str(error)) from None
    shipped = {"runtime_env": sent} if sent else {}
    try:
        if address is None:
            _check_temporary_folder()
            end_left_behind()
            with interrupt.kept(), noted() as started, _private_token(), _on_loopback():
                context = ray.init(
                    **shipped,
                    address="local",  # without it, Ray would join whatever cluster was last started on this machine
                    num_cpus=max(1, math.ceil(cpus)),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=200 * 2**20,
                    _node_ip_address="127.0.0.1",
                )
                started.session = context.address_info["session_dir"]
        else:
            check_address(address)
            if _token().is_file() or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
                # `ray start` asks for the token unless told not to; `ray.init` sends it only when told to.
                os.environ.setdefault("RAY_AUTH_MODE", "token")
            with interrupt.kept(), _on_loopback() if _is_on_loopback_alone(address) else nullcontext():
                ray.init(**shipped, address=address, log_to_driver=False, logging_level="ERROR")
        interrupt.check()
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        if isinstance(error, ClusterError):
            raise
        where = f"cluster.address is {address!r}, where" if address else "on this machine"
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ClusterError(
            f"{where} Ray cannot be joined: {' '.join(lines[:3]) or type(error).__name__}; "
            + ("check cluster.address and that every node runs the same Python and Ray" if address else "stop what is in the way, or set cluster.address")
        ) from None


def _token() -> Path:
    return Path.home() / ".ray" / "auth_token"


@contextmanager
def _private_token() -> Iterator[None]:
    """Whoever has the token may run code as this user: where Ray makes one, it is readable by its owner alone, which Ray leaves to the umask."""
    missing = not _token().exists()
    if missing:
        with suppress(OSError):  # Ray says what is wrong with the folder, where it needs it
            _token().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    yield
    if missing and _token().is_file():
        _token().chmod(0o600)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray started within listens on the loopback interface alone. Otherwise it takes 127.0.0.1 for the machine's outer address, and
    listens on all of them: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/services.py, resolve_ip_for_localhost.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # as it is on macOS and Windows, "to prevent bothersome firewall popups"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _is_on_loopback_alone(address: str) -> bool:
    """Whether the Ray at an address of this machine listens on the loopback interface alone, as one that `connect` has started does."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((services.get_node_ip_address(), int(port)), timeout=CONNECT_S).close()
    except OSError:
        return True
    return False


_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # of the path of a Unix socket (man 7 unix)


def _check_temporary_folder() -> None:
    """Refuse a temporary folder whose sockets would have too long a path, which Ray only says in passing. Raises `ClusterError`."""
    key = next((k for k in ("RAY_TMPDIR", "TMPDIR") if k in os.environ), None)
    if key is None:
        return
    folder = os.environ[key]
    # As ray/_private/node.py names them; the date is always as long.
    socket_name = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    most = _SOCKET_BYTES - len(socket_name)
    if len(os.fsencode(os.path.realpath(folder))) > most:
        raise ClusterError(
            f"{key} is {folder!r}, and Ray makes sockets in it, whose paths may have {_SOCKET_BYTES} bytes; give Ray a folder of at most {most} characters: "
            "export RAY_TMPDIR=/tmp (TMPDIR may stay as it is)"
        )


def check_address(address: str) -> None:
    """Refuse an address that is no Ray address, or where no Ray answers. Raises `ClusterError` within twice `CONNECT_S` seconds."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        raise ClusterError(
            f"cluster.address is {address!r}; give auto on a node of the cluster, or host:6379 of its head. From outside (ray://), run dato as a job: ray job submit"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as there:
            speaks = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_http2(there)
    except OSError as error:
        raise ClusterError(
            f"cluster.address is {address!r}, where nothing answers ({error}); start Ray there (ray start --head --port={port}), or correct the address"
        ) from None
    if not speaks:
        raise ClusterError(f"cluster.address is {address!r}, where something answers that is not Ray; give the address that `ray start --head` printed on the head")


def _speaks_http2(there: socket.socket) -> bool:
    """Whether the other end answers as gRPC does: `ray.init` would wait minutes for what does not."""
    settings = b"\0\0\0\4\0\0\0\0\0"  # an empty frame of that type: RFC 9113, sections 3.4 and 6.5
    try:
        there.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        answer = b""
        while len(answer) < len(settings) and (more := there.recv(len(settings) - len(answer))):
            answer += more
    except OSError:
        return False
    return answer[3:4] == settings[3:4]


def own_packages(code: str) -> Callable[[], None]:
    """What a worker calls before it imports anything of ours.

    Ray puts the driver's script folder and working folder first on a worker's path, where a folder that happens to be called
    `search` would win over ours: a worker moves these to the end, unless our packages are what is in them.
    """
    if code not in CODE:
        raise ClusterError(f"cluster.code is {code!r}; allowed are 'installed' (what each machine has) and 'upload' (this machine's packages are sent)")
    injected = {os.path.abspath(os.path.curdir), os.path.dirname(os.path.realpath(sys.argv[0]))} - {str(_ROOT)}
    root = str(_ROOT) if code == "installed" else None

    def arrange() -> None:  # a local function, so that Ray sends it by value
        import os
        import sys

        sent = [p for p in sys.path if "py_modules_files" in p]  # where Ray puts what is shipped
        last = [p for p in sys.path if p in injected]
        sys.path[:] = sent + [p for p in sys.path if p not in injected and p not in sent] + last
        if root and root not in sys.path and os.path.isfile(os.path.join(root, "search", "run", "ray_cluster.py")):
            sys.path.insert(0, root)

    return arrange


def worker_class() -> type:
    """The actor around an evaluator, which Ray sends by value: it must work before any of our packages is imported."""

    class Worker:
        def __init__(self, arrange: Any, factory: bytes) -> None:
            self.made_of = (arrange, factory)

        def place(self) -> dict[str, str]:
            """Where this process writes; answers before anything is loaded, so that it is known even of one that dies by loading."""
            import ray

            return {"log": ray._private.worker.global_worker.get_err_file_path()}

        def ready(self) -> dict[str, str]:
            import pickle
            import traceback

            arrange, factory = self.made_of
            arrange()
            try:
                self.evaluator = pickle.loads(factory).build()
            except Exception as error:
                traceback.print_exc()
                lines = str(error).strip().splitlines()
                return {"device": "", "error": f"{type(error).__name__}: {lines[0] if lines else ''}"}
            return {"device": getattr(self.evaluator, "device", "unnamed"), "error": ""}

        def do(self, method: str, strategies: Any, batches: Any) -> Any:
            import traceback

            try:
                return getattr(self.evaluator, method)(strategies, batches)
            except Exception:
                traceback.print_exc()  # for whoever follows the message to this process's log
                raise

        def do_and_keep(self, method: str, strategies: Any, batches: Any) -> tuple[None, Any]:
            return None, self.do(method, strategies, batches)  # two objects: the second stays here until somebody asks for it

    return Worker


def node_is_gone(node: str, error: ray.exceptions.RayError) -> bool:
    """Whether a worker's machine vanished, rather than the worker alone: the candidate is not to blame then."""
    if isinstance(error, ray.exceptions.NodeDiedError) or getattr(error, "preempted", False):
        return True
    return not any(n["NodeID"] == node and n["Alive"] for n in ray.nodes())


def in_one_line(error: BaseException) -> str:
    """The kind of an error and the line that says most: Ray puts its own boilerplate first."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    chosen = lines[0] if lines else ""
    if isinstance(error, ray.exceptions.RayError) and len(lines) > 1:
        chosen = lines[-1]
    return f"{type(error).__name__}: {chosen}"
