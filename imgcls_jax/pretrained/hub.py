"""Weights on the Hugging Face hub, by its own client: cached where it caches, and checked."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path

from imgcls_jax.types import UserError

log = logging.getLogger(__name__)

PREFIX = "hf:"
# What weights are called there, the one that cannot hold code first.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What says how images are made for them: timm's, transformers'.
CARDS = ("config.json", "preprocessor_config.json")


def download(source: str) -> Path:
    """The weights that `hf:OWNER/NAME[@REVISION]` names, in the client's cache, beside those of the CARDS there are.

    A file whose hash is not the hub's is deleted from the cache. The client takes its settings (token, mirror, folder,
    offline mode) from its usual environment variables.

    Raises:
      UserError: if there is no such repository, it has no weights, they are damaged, or the hub cannot be reached.
    """
    match = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@(\S+))?", source)
    if match is None:
        raise UserError(f"'{source}' is not a repository on the hub: write hf:OWNER/NAME or hf:OWNER/NAME@REVISION.")
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f"{source} needs huggingface_hub: pip install 'imgcls_jax[hub]'.") from error
    repo, revision = match.groups()
    page = f"https://huggingface.co/{repo}"
    try:
        unreachable = _unreachable(repo)
        weights = _first(repo, WEIGHTS, revision, local=unreachable is not None)
        if weights is None and unreachable is not None:
            raise unreachable
        if weights is None:
            raise UserError(f"{source} has neither {' nor '.join(WEIGHTS)}: see {page}/tree/main for what it has.")
        for name in CARDS:  # of the same commit, whatever is pushed in the meantime
            _first(repo, (name,), weights.parent.name, local=unreachable is not None)
    except errors.GatedRepoError as error:
        raise UserError(f"{source} is gated: accept its terms at {page}, then set HF_TOKEN to your token.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{source} is not on the hub, or is private: check the name at {page}, or set HF_TOKEN to a token that "
            "may read it."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{source}: there is no such revision; see {page}/commits for those there are.") from error
    except (errors.HTTPError, OSError) as error:
        raise UserError(
            f"{source} could not be downloaded and is not in the cache ({_reason(error)}): check the connection, or "
            f"fetch it elsewhere with `hf download {repo}` and give the folder."
        ) from error
    return weights


def _unreachable(repo: str) -> Exception | None:
    """Why the hub does not answer, if it does not: the client itself would try for half a minute for every file."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo, WEIGHTS[0]))
    except errors.HfHubHTTPError:
        return None  # an answer, if not a good one
    except (errors.HTTPError, OSError) as error:
        return error
    return None


def _first(repo: str, names: tuple[str, ...], revision: str | None, *, local: bool) -> Path | None:
    """The first of these files that the repository has, downloaded (with `local` found in the cache) and checked.

    None if it has none of them.
    """
    from huggingface_hub import errors, hf_hub_download

    absent = errors.LocalEntryNotFoundError if local else errors.RemoteEntryNotFoundError
    for name in names:
        with contextlib.suppress(absent):
            path = Path(hf_hub_download(repo, name, revision=revision, local_files_only=local))
            _check(repo, path)
            return path
    return None


def _check(repo: str, path: Path) -> None:
    """Raises UserError, and removes the file from the cache, unless its contents have the hash that the hub gives."""
    expected = _hub_hash(repo, path)
    size = path.stat().st_size
    # The hub gives the SHA-256 of large files and git's own hash of small ones.
    if re.fullmatch("[0-9a-f]{64}", expected):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", expected):
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    else:
        log.warning("%s of %s is not checked: this hub gives no hash of it.", path.name, repo)
        return
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        for copy in (path.resolve(), path):
            copy.unlink(missing_ok=True)
        raise UserError(
            f"{path.name} of {PREFIX}{repo} is damaged: its hash is {digest.hexdigest()}, the hub's {expected}; the "
            "copy in the cache was deleted: run the same command again to download it anew."
        )


def _hub_hash(repo: str, path: Path) -> str:
    """What the hub said the hash of a file in the cache is; asked again where the cache does not keep it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if path.is_symlink():  # to a file that is called by its hash
        return os.path.basename(os.readlink(path))
    return get_hf_file_metadata(hf_hub_url(repo, path.name, revision=path.parent.name)).etag or ""


def _reason(error: BaseException) -> str:
    """The first line of what was the matter."""
    return (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0][:200]
