"""Models on the Hugging Face hub, or a server that speaks as it does: which commit one is, and its files on this machine.

Of the processes on one node that want a model, one fetches it while the others wait for it, and no file is asked for twice.
``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` count as everywhere else.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from dato.files import FileError, read_json
from search.evaluate.load_arguments import ModelError

_PART = r"[\w.-]+"
_FORM = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:/(?P<inner>{_PART}(?:/{_PART})*))?(?:@(?P<revision>[^@\s]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_MAX_NOTE = 1 << 24


class UnreachableError(ModelError):
    """The hub does not answer, and the model is not in this machine's cache: another machine may have it."""


@dataclass(frozen=True)
class HubId:
    """A model on the hub.

    Attributes:
        repo: owner/name.
        inner: A folder or file within; "" for the whole.
        revision: Branch, tag or commit; None for the main branch.
    """

    repo: str
    inner: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """Of owner/name[/inner][@revision]; None for anything else."""
        found = _FORM.fullmatch(text)
        if not found or {"..", "."} & set(text.partition("@")[0].split("/")):
            return None
        return cls(found["repo"], found["inner"] or "", found["revision"])

    @property
    def pinned(self) -> bool:
        """Whether it is one commit, which no later one replaces."""
        return bool(self.revision and _COMMIT.fullmatch(self.revision))

    def at(self, revision: str | None) -> HubId:
        """The same at another revision."""
        return HubId(self.repo, self.inner, revision)

    def __str__(self) -> str:
        return self.repo + (f"/{self.inner}" if self.inner else "") + (f"@{self.revision}" if self.revision else "")


def commit_of(model: HubId, key: str) -> str:
    """The commit that a model is now; where the hub does not answer, the one that this machine's cache has.

    Args:
        model: On the hub.
        key: What it was given as, for messages.

    Raises:
        UnreachableError: Neither tells.
        ModelError: There is no such model or revision, or it is not for whoever asks.
    """
    if model.pinned:
        return str(model.revision)
    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        found = HfApi().model_info(model.repo, revision=model.revision).sha
    except Exception as error:  # of the client's HTTP library, which is another one from version to version
        refused = explained(error, model, key)
        if isinstance(refused, UnreachableError) and (kept := _kept_commit(model)):
            return kept
        raise refused from error
    if not found:
        raise ModelError(f"{key} {str(model)!r}: {constants.ENDPOINT} does not tell its commit; give one as revision")
    with suppress(OSError):  # of use only where the hub cannot be asked
        _reference(model).parent.mkdir(parents=True, exist_ok=True)
        _reference(model).write_text(found, encoding="utf-8")
    return found


def _reference(model: HubId) -> Path:
    """Where the hub's own client keeps which commit a branch or tag is: files are fetched by commit here, and it notes none then."""
    return _folder(model) / "refs" / (model.revision or "main")


def _kept_commit(model: HubId) -> str:
    try:
        return _reference(model).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def fetched(model: HubId, key: str, selection: str, fetch: Callable[[], str | Path]) -> Path:
    """The folder of a model's files on this machine; one process of the node fetches them, and what is there is not asked for again.

    Args:
        model: At a commit.
        key: What it was given as, for messages.
        selection: Says which of its files `fetch` fetches.
        fetch: Fetches the files; returns the folder that they are in.

    Raises:
        ModelError: Naming node, model and cause.
    """
    try:
        with one_at_a_time(model):
            name = hashlib.sha256(f"{model} {selection}".encode()).hexdigest()[:20]
            note = _folder(model) / "dato" / f"{name}.json"  # goes with the model when the cache is cleared of it
            folder = _folder(model) / "snapshots" / str(model.revision)
            if _whole(note, folder):
                return folder
            folder = Path(fetch())
            _write(note, sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()))
            return folder
    except ModelError:
        raise
    except Exception as error:  # of the client's HTTP library, which is another one from version to version
        raise explained(error, model, key) from error


def _whole(note: Path, folder: Path) -> bool:
    try:
        files = read_json(note, _MAX_NOTE)
    except FileError:
        return False
    return bool(files) and all((folder / name).is_file() for name in files)


def _write(note: Path, files: list[str]) -> None:
    try:
        note.parent.mkdir(exist_ok=True)
        note.with_suffix(".new").write_text(json.dumps(files), encoding="utf-8")
        note.with_suffix(".new").replace(note)
    except OSError as error:
        if not _read_only(error):
            raise


@contextmanager
def one_at_a_time(model: HubId) -> Iterator[None]:
    """Hold a node's other processes from a model until this one is done with it. A process that dies lets go of it."""
    path = Path(constants.HF_HUB_CACHE) / ".locks" / f"dato-{repo_folder_name(repo_id=model.repo, repo_type='model')}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        if not _read_only(error):
            raise
        yield  # a cache that nobody here can write to is fetched into by nobody
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_only(error: OSError) -> bool:
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def _folder(model: HubId) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model.repo, repo_type="model")


def explained(error: BaseException, model: HubId, key: str) -> ModelError:
    """What kept a model from being fetched: which node, which model, why, and what to do."""
    chain = list(_causes(error))
    kinds = tuple(type(e) for e in chain)
    where, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    given = f"{key} {str(model)!r} cannot be fetched on {socket.gethostname()}: "

    def among(*wanted: type) -> bool:
        return any(issubclass(kind, wanted) for kind in kinds)

    if among(GatedRepoError):
        return ModelError(f"{given}its licence is not accepted, or the token is not of who accepted it; accept it at {where}/{model.repo}, and set HF_TOKEN on every node to a token of that account")
    if among(RevisionNotFoundError):
        return ModelError(f"{given}it has no branch, tag or commit {model.revision!r}; give one of those at {where}/{model.repo}, or none for its main branch")
    if among(RepositoryNotFoundError):
        return ModelError(f"{given}there is none at {where}, or it is private; correct {key}, or set HF_TOKEN on every node to a token that may read it")
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return ModelError(f"{given}no space is left for {cache}; free some there, or set HF_HOME on that node to a folder with more")
    if any(isinstance(e, OSError) and _read_only(e) for e in chain):
        return ModelError(f"{given}{cache} cannot be written; let this user write there, or set HF_HOME on that node to a folder that it may write")
    if constants.HF_HUB_OFFLINE or among(OfflineModeIsEnabled):
        return UnreachableError(f"{given}HF_HUB_OFFLINE is set, and {cache} does not have it whole; fetch it there beforehand (hf download {model.repo}), set model.mirror, or unset HF_HUB_OFFLINE")
    if among(EntryNotFoundError) and not among(LocalEntryNotFoundError):
        file = re.search(r"/resolve/[^/]+/([^\s?]+?)[.\s?]*$", "\n".join(map(str, chain)), re.M)
        return ModelError(f"{given}it has no {file[1] if file else 'such file'}; give a model in diffusers' layout, or LoRA weights with the file's name, such as owner/name/file.safetensors")
    answered = next((e for e in chain if isinstance(e, HfHubHTTPError)), None)
    status = getattr(getattr(answered, "response", None), "status_code", 0) or 0
    if status in (401, 403):
        return ModelError(f"{given}{where} answers {status}; set HF_TOKEN on every node to a token that may read it, and accept its licence at {where}/{model.repo}")
    if any(isinstance(e, ConnectionError | TimeoutError) or type(e).__module__.split(".")[0] in ("httpx", "httpx2", "requests", "urllib3") for e in chain) or status >= 500:
        said = next((e for e in chain if type(e).__module__.split(".")[0] not in ("builtins", "diffusers", "huggingface_hub")), answered or chain[-1])
        return UnreachableError(
            f"{given}{where} does not answer ({type(said).__name__}: {_first_line(said)}); check that node's network, HF_ENDPOINT and HTTPS_PROXY, or set model.mirror to a folder that holds it"
        )
    return ModelError(f"{given}{_first_line(chain[0])}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
