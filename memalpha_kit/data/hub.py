"""Data sets from the Hugging Face hub, at a pinned revision, checked before they are used.

    download("YuWangX/Memalpha", "0123456789abcdef0123456789abcdef01234567", Path("data/memalpha"))

`huggingface_hub` fetches, resumes, verifies and shows progress. Ours: which files; that the
revision is a commit, as names of branches move; that files are data with the expected columns
before they stand under their final name; and `hub.json`, which records data set, revision and
the SHA-256 of every file. A later call verifies the files and asks nobody: one that was changed is
an error, one that is gone is fetched again and must be the same.

The kit was made without a network: no revision was tried out, and none is proposed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from memalpha_kit.data.instances import COLUMNS
from memalpha_kit.data.raw import opened, parquet
from memalpha_kit.data.sources import SOURCES
from memalpha_kit.errors import DiskError, InputError, closest
from memalpha_kit.files import held, load_json, resume_or_refuse, save_json, sha256

MANIFEST = "hub.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
PARTIAL = ".partial"  # what has arrived but is not checked; the next call goes on with it


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub and what its files must be like."""

    repo: str
    about: str = "raw files"
    paths: tuple[str, ...] = ("*.parquet",)  # name patterns of the files that are fetched
    columns: Sequence[str] = ()  # that every parquet file with rows must have
    raw: bool = False  # raw files lie side by side, as builders expect them

    @property
    def folder(self) -> Path:
        """Where it goes by default: raw files never lie where a data set is built or merged."""
        return Path("data/raw" if self.raw else "data") / self.repo.rpartition("/")[2].lower()


def hub_sets() -> dict[str, HubSet]:
    """Everything that can be downloaded, by repository: processed sets, then raw ones."""
    known = yaml.safe_load(Path(__file__).with_name("hub.yaml").read_text())
    sets = {
        repo: HubSet(repo, f"Mem-alpha's processed {about} set", columns=COLUMNS)
        for repo, about in known["processed"].items()
    }
    for repo, *paths in (SOURCES[name].hub for name in SOURCES if SOURCES[name].hub):
        others = sets[repo].paths if repo in sets else ()
        both = tuple(dict.fromkeys((*others, *paths)))
        sets[repo] = HubSet(repo, paths=both, columns=known["raw_columns"].get(repo, ()), raw=True)
    return sets


def download(
    dataset: str, revision: str | None, out: Path | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """The manifest of the data set in folder `out`, after fetching what is not there yet.

    With `dry_run` it is the plan: nothing is fetched or written and nobody is asked. Raises
    InputError for an unknown data set, a revision that is not a commit, a folder with another one,
    and files that fail a check; then no file has changed.
    """
    sets = hub_sets()
    if dataset not in sets:
        found = f"found {dataset!r}{closest(dataset, sets)}"
        raise InputError(f"data set: expected a known name, {found}")
    named = sets[dataset]
    out = Path(out or named.folder)
    manifest: dict[str, Any] = {"dataset": dataset, "about": named.about}
    if dry_run:
        return manifest | {
            "to": str(out),
            "revision": revision or "none given: a commit's 40 hex digits are needed",
            "would fetch": ", ".join(named.paths),
            "would check columns": ", ".join(named.columns) or "not known",
        }
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):  # branches and tags move
        found = "none" if revision is None else repr(revision)
        raise InputError(
            f"{dataset}: revision: expected a commit's 40 hex digits, found {found} "
            f"(https://huggingface.co/datasets/{dataset}/commits/main lists them; the kit knows of "
            "none that it has verified)"
        )
    manifest["revision"] = revision
    with held(out):
        return _downloaded(named, manifest, out)


def _downloaded(named: HubSet, manifest: dict[str, Any], out: Path) -> dict[str, Any]:
    """The whole manifest; files that are there are verified, the others fetched."""
    recorded = read_manifest(out)["files"]
    if recorded:
        same = {key: manifest[key] for key in ("dataset", "revision")}
        resume_or_refuse(out, same, free=("about", "files"), name=MANIFEST)
    whole = [name for name in recorded if (out / name).exists()]
    for name in whole:
        _check_same(out / name, recorded[name]["sha256"], sha256(out / name))
    if len(whole) == len(recorded) > 0:
        return manifest | {"files": recorded}
    manifest["files"] = _fetch(named, manifest["revision"], out, recorded)
    save_json(out / MANIFEST, manifest)
    return manifest


def describe(manifest: Mapping[str, Any]) -> list[str]:
    """Lines for people about a manifest or a plan."""
    lines = [f"{key}: {value}" for key, value in manifest.items() if key != "files"]
    for name, facts in manifest.get("files", {}).items():
        rows = "" if facts["rows"] is None else f", {facts['rows']} rows"
        lines.append(f"{name}: {facts['bytes']} bytes{rows}, sha256 {facts['sha256'][:12]}")
    return lines


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a download left in a folder; empty if there was none. Raises InputError."""
    path = folder / MANIFEST
    found = load_json(path) if path.exists() else {"files": {}}
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise InputError(f"{path}: expected a manifest with files, found another JSON value")
    return found


def revision(folder: Path, hashes: Mapping[str, str]) -> str:
    """The revision that the files in a folder were downloaded at, "unknown" if one was not.

    `hashes` are what the files have now; `memalpha data download` has recorded the same.
    """
    manifest = read_manifest(folder)
    recorded = {Path(name).name: facts["sha256"] for name, facts in manifest["files"].items()}
    seen = {Path(name).name: digest for name, digest in hashes.items()}
    same = seen and all(recorded.get(name) == digest for name, digest in seen.items())
    return manifest.get("revision", "unknown") if same else "unknown"


def _fetch(named: HubSet, revision: str, out: Path, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about the files by name, which then lie in `out`; all of them, or none."""
    partial = out / PARTIAL
    fetched = _arrived(named, revision, partial)
    try:
        files = {name: _checked(named, path) for name, path in sorted(fetched.items())}
        for name, facts in recorded.items():
            _check_same(out / name, facts["sha256"], files.get(name, {}).get("sha256", "none"))
        for name, path in fetched.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, out / name)
    except OSError as error:
        raise DiskError(f"{out}: expected to write, found: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return files


def _arrived(named: HubSet, revision: str, partial: Path) -> dict[str, Path]:
    """The fetched files by the name they will have. Raises InputError in one line."""
    from huggingface_hub import HfApi, errors, snapshot_download

    at: dict[str, Any] = {"repo_id": named.repo, "revision": revision, "repo_type": "dataset"}
    try:
        listed = HfApi().list_repo_files(**at)
        wanted = [path for path in listed if any(fnmatch(path, p) for p in named.paths)]
        if wanted:
            snapshot_download(**at, allow_patterns=wanted, local_dir=partial)
    except (errors.HTTPError, errors.EntryNotFoundError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            told = f"expected to write, found: {error.strerror}"
            raise DiskError(f"{partial.parent}: {told} (the same command goes on)") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{named.repo} at {revision[:12]}: expected an answer of the hub, found: {reason} "
            "(the same command goes on where it was)"
        ) from error
    found = {}
    for path in wanted:  # raw files lose all folders, others the first one if it is `data`
        parts = PurePosixPath(path).parts
        parts = parts[-1:] if named.raw else parts[len(parts) > 1 and parts[0] == "data" :]
        found["/".join(parts)] = partial / path
    if not found or len(found) < len(wanted):
        expected = " or ".join(named.paths) + (", one file of each name" if found else "")
        raise InputError(
            f"{named.repo}: expected {expected}, found {', '.join(sorted(listed)[:5]) or 'nothing'}"
        )
    return found


def _check_same(path: Path, wanted: str, found: str) -> None:
    if found != wanted:
        raise InputError(
            f"{path}: expected the file of the first download, sha256 {wanted[:12]}, found "
            f"{found[:12]} (remove the folder to start anew)"
        )


def _checked(named: HubSet, path: Path) -> dict[str, Any]:
    """Facts of a fetched file for the manifest. Raises InputError for a pointer or bad content.

    A parquet file without rows may come without columns.
    """
    with opened(path):  # for its errors
        pass
    facts = {"sha256": sha256(path), "bytes": path.stat().st_size, "rows": None}
    if path.suffix == ".parquet":
        with parquet(path, named.columns) as file:
            facts["rows"] = file.metadata.num_rows
    return facts
