"""Find a model on this machine: a folder, or a name on the hub whose files are in the hub's cache here."""

from __future__ import annotations

from pathlib import Path

from apps.models.folder import BrokenFile, Fault, weights_fault

TIMEOUT_S = 2.0
DOWNLOAD = "Download it where there is a network (hf download {name}), or give the model's folder"


def is_path(source: str) -> bool:
    """Return True for a source that can only be a folder: it begins like a path, exists here, or is no hub name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if source.startswith((".", "/", "~")) or Path(source).expanduser().exists():
        return True
    try:
        validate_repo_id(source)
    except HFValidationError:
        return True
    return False


def cached_folder(name: str) -> Path | None:
    """Return the folder of a hub model's files in the cache of this machine, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def is_whole(folder: Path) -> bool:
    """Return True if the cache has a model's weights too, not only its configuration."""
    try:
        return weights_fault(folder) is None
    except (BrokenFile, OSError):
        return False


def hub_fault(name: str) -> Fault | None:
    """Return why a model cannot be downloaded from the hub, or None; asks the hub, for two seconds at most.

    Args:
        name: of the model on the hub.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    where, download = (
        f"is not on this machine ({_not_a_folder(name)}not in the hub's cache)",
        DOWNLOAD.format(name=name),
    )
    if constants.HF_HUB_OFFLINE:
        return Fault(f"{where}, and HF_HUB_OFFLINE forbids to ask the hub", download)
    try:
        HfApi().model_info(name, timeout=TIMEOUT_S)
    except RepositoryNotFoundError:
        return Fault(f"{where}, and the hub does not give it: no such name, or it needs a login", "Run: hf auth login")
    except HfHubHTTPError:
        return None  # the hub is there, and busy
    except Exception:  # noqa: BLE001 - the errors of the transport differ between versions of the library
        return Fault(f"{where}, and the hub cannot be reached from here", download)
    return None


def _not_a_folder(name: str) -> str:
    return "no folder of this name, " if "/" in name else ""
