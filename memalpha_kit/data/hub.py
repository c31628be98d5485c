"""Data sets from the Hugging Face hub, at a pinned revision, checked before they are used.

    download("YuWangX/Memalpha", "0123456789abcdef0123456789abcdef01234567", Path("data/memalpha"))

Laws: the revision is a commit's 40 hex digits, so that the same call gives the same bytes for ever;
a file stands under its final name only after it was checked. `hub.json` beside the files records
their SHA-256 at the first download, and every later call verifies them; a file that was changed is
an error, one that is gone is fetched again and must be the same. The hub's own SHA-256 is compared
too where it gives one. A Git-LFS pointer in place of data, missing columns and another number of
rows than published are errors.

The kit was made without a network: no revision was tried out, none is proposed, and the numbers of
rows are those of papers and data set cards. `huggingface_hub` is imported when it is used, not
before: planning (`dry_run`) and verifying need neither it nor a network.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from memalpha_kit.data.sources import SOURCES
from memalpha_kit.errors import DiskError, InputError, closest
from memalpha_kit.files import COLUMNS, LFS_POINTER, load_json, save_json, sha256

MANIFEST = "hub.json"
PARTIAL = ".partial"
PINNED = re.compile(r"[0-9a-f]{40}")
UNVERIFIED = "not verified: the kit was made without a network"


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub and what its files must be like."""

    repo: str
    about: str
    paths: tuple[str, ...] = ("*.parquet",)  # name patterns of the files that are fetched
    columns: tuple[str, ...] = ()  # that every parquet file with rows must have
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # published, by split
    flat: bool = False  # all files side by side, as builders expect raw files


_BENCHMARK = {
    "Accurate_Retrieval": (112, 22),
    "Test_Time_Learning": (6,),
    "Long_Range_Understanding": (100, 110),
    "Conflict_Resolution": (2, 8),
}
_PROCESSED = (
    HubSet(
        "YuWangX/Memalpha",
        "Mem-alpha's processed training and validation set",
        columns=COLUMNS,
        rows={"train": (562, 567), "test": (463, 458)},
    ),
    HubSet(
        "YuWangX/Memalpha-full",
        "the same, not balanced",
        columns=COLUMNS,
        rows={"train": (4139,), "validation": (463,)},
    ),
    HubSet(
        "YuWangX/Memalpha-Memoryagentbench",
        "Mem-alpha's processed evaluation set",
        columns=COLUMNS,
        rows={"train": (0,), "test": (112,)},
    ),
)
_RAW_COLUMNS: dict[str, tuple[str, ...]] = {
    "ai-hyz/MemoryAgentBench": ("context", "questions", "answers", "metadata"),
}
_RAW_ROWS: dict[str, Mapping[str, tuple[int, ...]]] = {
    "ai-hyz/MemoryAgentBench": _BENCHMARK,
    "pietrolesci/pubmed-200k-rct": {"train": (2_211_861,)},
}


def hub_sets() -> dict[str, HubSet]:
    """Everything that can be downloaded, by repository: processed sets, then raw ones."""
    sets = {named.repo: named for named in _PROCESSED}
    for source in SOURCES.values():
        if source.hub:
            repo = source.hub.repo
            paths = sets[repo].paths if repo in sets else ()
            sets[repo] = HubSet(
                repo,
                "raw files",
                tuple(dict.fromkeys((*paths, *source.hub.paths))),
                _RAW_COLUMNS.get(repo, ()),
                _RAW_ROWS.get(repo, {}),
                flat=True,
            )
    return sets


class Client(Protocol):
    """What is asked of the hub."""

    def files(self, repo: str, revision: str) -> Mapping[str, str | None]:
        """Paths in the data set with the hub's SHA-256, where it has one."""

    def fetch(self, repo: str, revision: str, path: str, folder: Path) -> Path:
        """Puts a file below `folder` and says where."""


def download(
    dataset: str,
    revision: str | None,
    out: Path,
    dry_run: bool = False,
    any_rows: bool = False,
    client: Client | None = None,
) -> dict[str, Any]:
    """The manifest of the data set in folder `out`, after fetching what is not there yet.

    With `dry_run` it is the plan: nothing is fetched or written and nobody is asked. `any_rows`
    accepts other numbers of rows than published. Raises InputError for an unknown data set, a
    revision that is not a commit, a folder with another one, and files that fail a check; then no
    file has changed.
    """
    named, out = hub_set(dataset), Path(out)
    if dry_run:
        return plan(named, revision, out)
    pinned = check_revision(named, revision)
    manifest = _recorded(named, pinned, out)
    recorded = manifest["files"]
    missing = [name for name in recorded if not (out / name).exists()]
    for name in sorted(recorded.keys() - set(missing)):
        _verify(out / name, recorded[name])
    if recorded and not missing:
        return manifest
    partial = out / PARTIAL
    try:
        fetched = _fetch(named, pinned, partial, client or HubClient())
        files = {name: _checked(named, path, digest) for name, (path, digest) in fetched.items()}
        _check_again(out, files, recorded)
        if not any_rows:
            _check_rows(named, files)
        for name in sorted(files.keys() - (recorded.keys() - set(missing))):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(fetched[name][0], out / name)
    except OSError as error:
        raise DiskError(f"{out}: expected to write, found: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    manifest |= {"files": dict(sorted(files.items()))}
    save_json(out / MANIFEST, {key: manifest[key] for key in manifest if key != "out"})
    return manifest


def hub_set(dataset: str) -> HubSet:
    """The data set of that name. Raises InputError with the closest known one."""
    known = hub_sets()
    if dataset not in known:
        found = f"found {dataset!r}{closest(dataset, known)}"
        raise InputError(f"data set: expected a known name, {found}")
    return known[dataset]


def plan(named: HubSet, revision: str | None, out: Path) -> dict[str, Any]:
    """What a download would do: where from and to, which files, what is checked."""
    return {
        "dataset": named.repo,
        "about": named.about,
        "revision": revision or "none given: a commit's 40 hex digits are needed",
        "revision_status": UNVERIFIED,
        "out": str(out),
        "paths": list(named.paths),
        "columns": list(named.columns),
        "rows": {split: list(counts) for split, counts in named.rows.items()},
        "files": {},
    }


def describe(manifest: Mapping[str, Any]) -> list[str]:
    """Lines for people about a manifest or a plan."""
    lines = [
        f"{manifest['dataset']}: {manifest['about']}",
        f"revision {manifest['revision']} ({manifest['revision_status']})",
        f"to {manifest['out']}",
    ]
    if not manifest["files"]:
        rows = (f"{k} {' or '.join(map(str, v))}" for k, v in manifest["rows"].items())
        lines += [
            f"would fetch {', '.join(manifest['paths'])}",
            f"would check columns {', '.join(manifest['columns']) or '(not known)'}",
            f"would check rows {', '.join(rows) or '(not known)'}",
        ]
    for name, facts in manifest["files"].items():
        rows = "" if facts["rows"] is None else f", {facts['rows']} rows"
        lines.append(f"{name}: {facts['bytes']} bytes{rows}, sha256 {facts['sha256'][:12]}")
    return lines


def check_revision(named: HubSet, revision: str | None) -> str:
    """The revision, if it is a commit. Raises InputError: names of branches and tags move."""
    if revision is None or not PINNED.fullmatch(revision):
        page = f"https://huggingface.co/datasets/{named.repo}/commits/main"
        found = "none" if revision is None else repr(revision)
        raise InputError(
            f"{named.repo}: revision: expected a commit's 40 hex digits, found {found} ({page} "
            "lists them; the kit knows of none that it has verified)"
        )
    return revision


# --- Fetching ------------------------------------------------------------------------------------


class HubClient:
    """The real hub. Raises InputError, in one line, for whatever goes wrong there."""

    def files(self, repo: str, revision: str) -> dict[str, str | None]:
        """Paths in the data set with the SHA-256 of those that are LFS files."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        def listed() -> dict[str, str | None]:
            tree = HfApi().list_repo_tree(
                repo, recursive=True, revision=revision, repo_type="dataset"
            )
            files = (entry for entry in tree if isinstance(entry, RepoFile))
            return {file.path: file.lfs.sha256 if file.lfs else None for file in files}

        return _asked(repo, revision, listed)

    def fetch(self, repo: str, revision: str, path: str, folder: Path) -> Path:
        """Puts a file below `folder` and says where."""
        from huggingface_hub import hf_hub_download

        def fetched() -> Path:
            return Path(
                hf_hub_download(
                    repo, path, revision=revision, repo_type="dataset", local_dir=folder
                )
            )

        return _asked(repo, revision, fetched)


def _asked(repo: str, revision: str, ask: Callable[[], Any]) -> Any:
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    wrong = (HTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    try:
        return ask()
    except wrong as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{repo} at {revision[:12]}: expected an answer of the hub, found: {reason}"
        ) from error


def _fetch(
    named: HubSet, revision: str, partial: Path, client: Client
) -> dict[str, tuple[Path, str | None]]:
    """(fetched file, the hub's SHA-256) by the name it will have."""
    listed = client.files(named.repo, revision)
    fetched: dict[str, tuple[Path, str | None]] = {}
    for path in sorted(listed):
        if any(fnmatch(path, pattern) for pattern in named.paths):
            name = _local_name(named, path)
            if name in fetched:
                raise InputError(f"{named.repo}: expected one file {name}, found several")
            fetched[name] = client.fetch(named.repo, revision, path, partial), listed[path]
    if not fetched:
        found = ", ".join(sorted(listed)[:5]) or "no files"
        raise InputError(f"{named.repo}: expected {' or '.join(named.paths)}, found {found}")
    return fetched


def _local_name(named: HubSet, path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path:
        raise InputError(f"{named.repo}: expected a path inside the data set, found {path!r}")
    if named.flat:
        return parts[-1]
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] == "data" else parts)


# --- Checking ------------------------------------------------------------------------------------


def _recorded(named: HubSet, revision: str, out: Path) -> dict[str, Any]:
    """The manifest in `out`, or a new one without files."""
    fresh = plan(named, revision, out)
    path = out / MANIFEST
    if not path.exists():
        return fresh
    found = load_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise InputError(f"{path}: expected a manifest with files, found another JSON value")
    for key, wanted in (("dataset", named.repo), ("revision", revision)):
        if found.get(key) != wanted:
            raise InputError(
                f"{path}: {key}: expected {wanted}, found {found.get(key)} (choose another folder)"
            )
    return fresh | {"files": found["files"]}


def _verify(path: Path, facts: Mapping[str, Any]) -> None:
    digest = sha256(path)
    if digest != facts.get("sha256"):
        wanted = f"sha256 {str(facts.get('sha256'))[:12]}"
        raise InputError(
            f"{path}: expected the file of the first download, {wanted}, found {digest[:12]} "
            "(remove it to fetch it again)"
        )


def _checked(named: HubSet, path: Path, digest: str | None) -> dict[str, Any]:
    """Facts of a fetched file for the manifest. Raises InputError for a pointer or bad content."""
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path.name}: expected data, found a Git-LFS pointer")
    found = sha256(path)
    if digest is not None and found != digest:
        raise InputError(
            f"{path.name}: expected sha256 {digest[:12]} as on the hub, found {found[:12]}"
        )
    rows = None
    if path.suffix == ".parquet":
        rows = _check_columns(path, named.columns)
    return {"sha256": found, "bytes": path.stat().st_size, "rows": rows}


def _check_columns(path: Path, columns: Sequence[str]) -> int:
    """Rows of a parquet file. Zero rows may come without columns (data.md 1.4)."""
    try:
        with pq.ParquetFile(path) as file:
            rows, names = file.metadata.num_rows, file.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        found = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path.name}: expected parquet, found: {found}") from error
    for column in columns:
        if rows and column not in names:
            found = ", ".join(names)
            raise InputError(f"{path.name}: expected a column {column!r}, found {found}")
    return rows


def _check_again(
    out: Path, files: Mapping[str, Mapping[str, Any]], recorded: Mapping[str, Mapping[str, Any]]
) -> None:
    """Nothing; raises InputError if the hub gives other files than at the first download."""
    for name, facts in recorded.items():
        if name not in files or files[name]["sha256"] != facts.get("sha256"):
            raise InputError(
                f"{out / name}: expected the hub to have the file of the first download, "
                f"found {'another' if name in files else 'none'}"
            )


def _check_rows(named: HubSet, files: Mapping[str, Mapping[str, Any]]) -> None:
    for split, accepted in named.rows.items():
        counts = [facts["rows"] or 0 for name, facts in files.items() if _split(name) == split]
        if counts and sum(counts) not in accepted:
            wanted = " or ".join(map(str, accepted))
            raise InputError(
                f"{named.repo}: {split}: expected {wanted} rows as published, found {sum(counts)} "
                "(another revision? any_rows accepts it)"
            )


def _split(name: str) -> str:
    """The split of a file, from its folder (`train/0.parquet`) or name (`train-00000-of-00001`)."""
    path = PurePosixPath(name)
    if len(path.parts) > 1:
        return path.parts[0]
    return re.sub(r"-\d+-of-\d+.*$", "", path.stem)
