"""Loading and saving of networks in folders and on the Hugging Face Hub: weights, configuration and model card.

The files ``model.safetensors``, ``config.json`` and ``README.md`` are compatible with ``PyTorchModelHubMixin`` of
huggingface_hub in both directions. huggingface_hub is imported only for downloads and uploads, not for folders.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from restormixer_arch.errors import SPECIAL_FILE, UserError, did_you_mean, not_found
from restormixer_arch.output import atomic_paths, note, user_path
from restormixer_arch.weight_options import add_stamp, options_from_weights

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
LATEST_WEIGHTS = "net_g_latest.pth"  # weights of a training run, in its folder ``models``
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".onnx")  # suffixes of files; repository names do not end in them
CARD_TEXT = """---
license: {license}
library_name: restormixer
pipeline_tag: image-to-image
tags:
{tags}
---

# {title}

RestorMixer ([arXiv 2504.10967](https://arxiv.org/abs/2504.10967)) for {task}, {parameters:,} parameters.
`{weights}` holds the weights and what is needed to build the network; `{config}` holds its arguments.

```bash
basicsr restore photo.jpg -o restored --weights {quoted}
```

```python
from restormixer_arch import RestorMixer

network = RestorMixer.from_pretrained({name!r})  # (B, {channels}, H, W) in [0, 1] -> restored images
```
"""


class HubMixin:
    """Mixin that adds ``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` to a network."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Build a network from a folder or repository and load its weights.

        Args:
            name: folder with ``model.safetensors``, a ``.safetensors`` file, or repository ``organization/name``. Local
                files take precedence.
            revision: branch, tag or commit of the repository.
            cache_dir: cache folder of repositories; by default that of huggingface_hub.
            token: access token for private repositories; by default that of ``hf auth login``.
            force_download: download files again even if they are in the cache.
            local_files_only: use only files in the cache, without internet access.

        Returns:
            The network in eval mode on the CPU.

        Raises:
            UserError: if the network cannot be found, downloaded or read.
        """
        fetching = {"revision": revision, "cache_dir": cache_dir, "token": token}
        path = locate(name, **fetching, force_download=force_download, local_files_only=local_files_only)
        if path.suffix.lower() != ".safetensors":
            raise UserError(f"{name}: not a .safetensors file; 'basicsr export {name} -o model.safetensors' makes one")
        state = read_safetensors(path)
        try:
            return cls.from_weights(state, network_options(cls, path, state)).eval()
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{name}: no {cls.__name__} can be built from it ({reason})") from error

    def save_pretrained(self, folder: str | Path, *, license: str = "apache-2.0") -> Path:
        """Write the network to a folder. Existing files are replaced, except for ``README.md``.

        Args:
            folder: output folder; it is created if it is missing.
            license: license of the weights for the model card.

        Returns:
            The folder.
        """
        folder = user_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write(self, folder, folder.resolve().name, license)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str = "apache-2.0",
        commit_message: str = "Upload RestorMixer",
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the network. The repository is created if it is missing, and an existing model card is kept.

        Args:
            repo_id: repository, ``organization/name``.
            license: license of the weights for the model card.
            commit_message: message of the commit.
            private: whether a new repository is private; by default the organization's setting.
            revision: branch; ``main`` by default.
            token: access token; by default that of ``hf auth login``.

        Returns:
            The URL of the commit.

        Raises:
            UserError: if huggingface_hub is not installed or the upload fails.
        """
        with _explain_hub_errors(repo_id, "uploaded"), tempfile.TemporaryDirectory() as folder:
            from huggingface_hub import HfApi

            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            _write(self, Path(folder), repo_id, license)
            if api.file_exists(repo_id, CARD, revision=revision):
                Path(folder, CARD).unlink()
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
            )
            return str(commit)


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Return the weight file for a name that the user gave; a file of a repository is downloaded.

    Args:
        name: file, folder or repository; local files take precedence.
        revision, cache_dir, token, force_download, local_files_only: see :meth:`HubMixin.from_pretrained`.

    Raises:
        UserError: if the file does not exist or cannot be downloaded.
    """
    if found := find_local_weights(name):
        return found
    repo_id = user_path(name).as_posix()
    with _explain_hub_errors(repo_id, "fetched"):
        note(f"{repo_id}: no such file here, looking for it on the Hugging Face Hub")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        settings = {"revision": revision, "cache_dir": cache_dir, "token": token, "force_download": force_download}
        file = hf_hub_download(repo_id, WEIGHTS, **settings, local_files_only=local_files_only)
        try:
            hf_hub_download(repo_id, CONFIG, **settings, local_files_only=local_files_only)
        except EntryNotFoundError:
            pass  # weights written by this project need no configuration
        return Path(file)


def find_local_weights(name: str | Path) -> Path | None:
    """Return the local weight file for a name that the user gave, or None if it can only be a repository.

    Raises:
        UserError: if it is neither a weight file nor a possible repository name.
    """
    path = user_path(name)
    if path.is_file() or (path / WEIGHTS).is_file():
        return path if path.is_file() else path / WEIGHTS
    if path.is_dir():
        trained = [file for file in (path / LATEST_WEIGHTS, path / "models" / LATEST_WEIGHTS) if file.is_file()]
        hint = f"; use the weights of the training, {trained[0]}" if trained else ""
        raise UserError(f"{name}: this folder holds no {WEIGHTS}{hint}")
    if path.exists():
        raise UserError(f"{name}: {SPECIAL_FILE}")
    if path.is_symlink():
        raise UserError(f"{name}: {not_found(path)}")
    if path.suffix.lower() in SUFFIXES or not REPOSITORY.fullmatch(path.as_posix()):
        raise UserError(f"{name}: {not_found(path)}")
    near = [other.name for other in path.parent.glob("*") if _may_hold_weights(other)]
    if hint := did_you_mean(path.name, near):
        raise UserError(
            f"{name}: no such weights in {str(path.parent)!r}, so they are not looked for on the "
            f"Hugging Face Hub.{hint}"
        )
    return None


def _may_hold_weights(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or os.path.isfile(path / WEIGHTS)


@contextmanager
def _explain_hub_errors(repo_id: str, done: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into UserErrors."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            f"{repo_id}: is not a file or folder here, and the Hugging Face Hub needs huggingface_hub; "
            "pip install 'restormixer[hub]'"
        ) from error
    at = f"{repo_id}: cannot be {done}"
    import_module("huggingface_hub.utils.logging")  # importing it later would reset the level
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # hides the messages about retries
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{at}: the repository is gated: accept its terms online, and run 'hf auth login'") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{at}: no such file here, and no such repository on the Hugging Face Hub (a private one needs "
            "'hf auth login')"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{at}: the repository has no such revision") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"{at}: no such file here, and the Hugging Face Hub cannot be reached (no connection, or HF_HUB_OFFLINE is "
            "set), and it is not in the cache"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{at}: the repository has no {WEIGHTS}, so no weights of RestorMixer") from error
    except (OSError, errors.HTTPError, errors.HFValidationError) as error:
        raise UserError(f"{at} ({str(error).splitlines()[0]})") from error
    finally:
        log.setLevel(level)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file to the CPU, by name.

    Raises:
        UserError: if the file is damaged or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error


def to_safetensors(network: nn.Module) -> bytes:
    """Return a RestorMixer in safetensors format: its tensors, and the options that these do not show."""
    from safetensors.torch import save

    state = add_stamp(network.state_dict(), network)
    return save({name: tensor.contiguous() for name, tensor in state.items()}, metadata={"format": "pt"})


def network_options(network: type[nn.Module], weights: Path, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of a network from ``config.json`` next to its weights, or None if that file is missing.

    Options that the weights show take precedence. The configuration supplies ``deep_supervision`` and, for weights
    without a stamp, heads, window size and scan merge.

    Raises:
        ValueError: if the file is not a JSON object, or ``state`` is not the state dict of a RestorMixer.
    """
    path = weights.with_name(CONFIG)
    if weights.name != WEIGHTS or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} holds no object")
    known = inspect.signature(network).parameters
    return {key: value for key, value in config.items() if key in known} | options_from_weights(state)


def _write(network: nn.Module, folder: Path, name: str, license: str) -> None:
    """Write weights, configuration and, unless it exists, the model card."""
    options = options_from_weights(add_stamp(network.state_dict(), network))
    config = {**options, "deep_supervision": network.deep_supervision}
    tags = ["image-restoration", "restormixer", *(["super-resolution"] if network.upscale > 1 else [])]
    card = CARD_TEXT.format(
        license=license,
        tags="\n".join(f"- {tag}" for tag in tags),
        title=" ".join(name.rpartition("/")[2].split()),
        name=name,
        quoted=shlex.quote(name),
        task=f"super-resolution by {network.upscale}" if network.upscale > 1 else "image restoration",
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        channels=options["in_channels"],
        weights=WEIGHTS,
        config=CONFIG,
    )
    files = {WEIGHTS: to_safetensors(network), CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    if not (folder / CARD).exists():
        files[CARD] = card.encode()
    with atomic_paths([folder / file for file in files]) as parts:
        for part, content in zip(parts, files.values(), strict=True):
            part.write_bytes(content)
