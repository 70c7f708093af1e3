"""A network in a folder or on the Hugging Face Hub: ``model.safetensors``, ``config.json`` and a model card.

The files are those of huggingface_hub's ``PyTorchModelHubMixin``, so each can read what the other wrote.
huggingface_hub is imported only to fetch or upload something: a folder is read and written without it.
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
LATEST_WEIGHTS = "net_g_latest.pth"  # of a training, in its folder models
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".onnx")  # of files, which no name of a repository ends in
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
    """``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of a network."""

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
        """Build the network of a folder or repository and load its weights.

        Args:
            name: a folder with ``model.safetensors``, such a file itself, or a repository ``organization/name``. What
                exists on this computer is taken first.
            revision: branch, tag or commit of the repository.
            cache_dir: where repositories are kept; by default huggingface_hub's own place.
            token: for private repositories; by default the one of ``hf auth login``.
            force_download: fetch again what is in the cache.
            local_files_only: take what is in the cache, without the network.

        Returns:
            The network in eval mode, on the CPU.

        Raises:
            UserError: it cannot be found, fetched or read.
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
        """Write the network to a folder; what was there before is replaced, except for ``README.md``.

        Args:
            folder: made if it is missing.
            license: of the weights, as the model card names it.

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
        """Upload the network; the repository is made if it is missing, and a model card that is there stays.

        Args:
            repo_id: the repository, ``organization/name``.
            license: of the weights, as the model card names it.
            commit_message: of the commit.
            private: for a repository that is made; by default what the organization has set.
            revision: the branch; ``main`` by default.
            token: by default the one of ``hf auth login``.

        Returns:
            The URL of the commit.

        Raises:
            UserError: huggingface_hub is not installed, or the upload fails.
        """
        with _errors_of_the_hub(repo_id, "uploaded"), tempfile.TemporaryDirectory() as folder:
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
    """Return the file of the weights that a user named: a file, a folder, or a repository, which is fetched.

    Args:
        name: what exists on this computer is taken first.
        revision, cache_dir, token, force_download, local_files_only: see :meth:`HubMixin.from_pretrained`.

    Raises:
        UserError: there is no such file, or it cannot be fetched.
    """
    if found := find_here(name):
        return found
    repo_id = user_path(name).as_posix()
    with _errors_of_the_hub(repo_id, "fetched"):
        note(f"{repo_id}: no such file here, looking for it on the Hugging Face Hub")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        settings = {"revision": revision, "cache_dir": cache_dir, "token": token, "force_download": force_download}
        file = hf_hub_download(repo_id, WEIGHTS, **settings, local_files_only=local_files_only)
        try:
            hf_hub_download(repo_id, CONFIG, **settings, local_files_only=local_files_only)
        except EntryNotFoundError:
            pass  # our weights hold it all
        return Path(file)


def find_here(name: str | Path) -> Path | None:
    """Return the file of the weights that a user named, None where it can only be a repository.

    Raises:
        UserError: it can be neither.
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
    near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    if path.suffix.lower() in SUFFIXES or not REPOSITORY.fullmatch(path.as_posix()):
        raise UserError(f"{name}: no such file of weights.{did_you_mean(path.name, near)}")
    if hint := did_you_mean(path.name, [other for other in near if _may_hold_weights(path.with_name(other))]):
        raise UserError(
            f"{name}: no such weights in {str(path.parent)!r}, so they are not looked for on the "
            f"Hugging Face Hub.{hint}"
        )
    return None


def _may_hold_weights(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or os.path.isfile(path / WEIGHTS)


@contextmanager
def _errors_of_the_hub(repo_id: str, done: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into UserErrors."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            f"{repo_id}: is not a file or folder here, and the Hugging Face Hub needs huggingface_hub; "
            "pip install 'restormixer[hub]'"
        ) from error
    at = f"{repo_id}: cannot be {done}"
    import_module("huggingface_hub.utils.logging")  # loaded later, it would set the level itself
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # without a line for each time that it tries again
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
    """Read the tensors of a file on the CPU, by name.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error


def to_safetensors(network: nn.Module) -> bytes:
    """Return a RestorMixer as the content of a file: its tensors, and the options that they do not show."""
    from safetensors.torch import save

    state = add_stamp(network.state_dict(), network)
    return save({name: tensor.contiguous() for name, tensor in state.items()}, metadata={"format": "pt"})


def network_options(network: type[nn.Module], weights: Path, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of a network from ``config.json`` beside its weights, or None if there is no such file.

    What the weights themselves show counts more; only files without a stamp leave something to the configuration.

    Raises:
        ValueError: the file is no JSON object, or ``state`` is not that of a RestorMixer.
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
    """Write weights, configuration and, unless there is one, the model card."""
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
