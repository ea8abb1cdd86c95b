"""Download of the public weights that OpenWorldSAM builds on, by name; needs nothing installed.

Files of Hugging Face come through huggingface_hub where it is installed, and are linked from its cache. Any other
download goes to FILE.part, which the same command again resumes. A file gets its final name only when it is complete,
so it can be trusted. FILE.sha256 records the checksum of what was fetched, which must be the published one where there
is one (`PUBLISHED`). Only https is followed.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from itertools import chain
from pathlib import Path
from typing import Any

from openworldsam.config_files import weights_folder
from openworldsam.utils.launch import user_errors

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30.0
ATTEMPTS = 4  # in a row without a new byte; any progress starts the count again
BACKOFF_SECONDS = 1.0  # doubled after each failed attempt
TRANSIENT_STATUS = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
SCHEMES = ("https",)
MOST_BYTES = 20 * 10**9  # of a file whose size was not published
WEB_PAGES = ("text/html", "application/xhtml+xml", "application/xml", "text/xml", "application/json")


@dataclass(frozen=True)
class Weight:
    """A public file: its address, its name here, its purpose, the page with its terms; checksum and size if known.

    With `files` it is a folder of them, which lie below its address; an index brings its shards.
    """

    url: str
    filename: str
    purpose: str
    terms_url: str
    note: str = ""  # ends the error message when the download fails
    parameters: int = 0  # millions
    sha256: str = ""
    size: int = 0
    files: tuple[str, ...] = ()

    @property
    def gigabytes(self) -> float:
        """Size as published, otherwise that of the parameters in fp32."""
        return self.size / 1e9 if self.size else 0.004 * self.parameters


PUBLISHED = {
    "beit3.spm": ("6f5e2fefcf793761a76a6bfb8ad35489f9c203b25557673284b6d032f41043f4", 1_356_293),
    "evf-sam2.safetensors": ("de5ea4da5236e386ca1c7f5eba51d008f10082d433d9bb354050721701f2e5db", 3_145_168_996),
    "sam2_hiera_large.pt": ("7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b", 897_952_466),
    "sam2_hiera_base_plus.pt": ("d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071", 0),
    "sam2.1_hiera_large.pt": ("2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318", 898_083_611),
    "sam2.1_hiera_base_plus.pt": ("a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5", 323_606_802),
    "sam2.1_hiera_small.pt": ("6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38", 184_416_285),
    "sam2.1_hiera_tiny.pt": ("7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69", 156_008_466),
}
"""SHA-256 and size (0: unknown) of files, by name, as public pages give them."""


def _openworldsam(drive_id: str, filename: str) -> Weight:
    # confirm=t skips the page that Google Drive shows instead of a file too large for its virus scan
    url = f"https://drive.usercontent.google.com/download?id={drive_id}&export=download&confirm=t"
    return _known(url, filename, "released OpenWorldSAM", "https://github.com/GinnyXiao/OpenWorldSAM", 902)


def _known(url: str, filename: str, purpose: str, terms_url: str, parameters: int, note: str = "") -> Weight:
    return Weight(url, filename, purpose, terms_url, note, parameters, *PUBLISHED.get(filename, ("", 0)))


def _sam2(path: str, parameters: int) -> Weight:
    url, page = f"https://dl.fbaipublicfiles.com/segment_anything_2/{path}", "https://github.com/facebookresearch/sam2"
    return _known(url, Path(path).name, "SAM2: images to masks", page, parameters)


def _beit3(filename: str, purpose: str, parameters: int = 0) -> Weight:
    url = f"https://github.com/addf400/files/releases/download/beit3/{filename}"
    return _known(url, filename, purpose, "https://github.com/microsoft/unilm/tree/master/beit3", parameters)


def _evf_sam2(repository: str, remote: str = "model.safetensors", other: str = "") -> Weight:
    page = f"https://huggingface.co/YxZhang/{repository}"
    purpose = "EVF-SAM2, and its BEiT-3" + (f" (its file name there, {remote}, is a guess)" if other else "")
    note = f" It may have another name there, or be split: try {other}, or see {page}/tree/main." if other else ""
    return _known(f"{page}/resolve/main/{remote}", repository + Path(remote).suffix, purpose, page, 898, note)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MODEL_FILES = ("config.json", "preprocessor_config.json")
SHARDS = "model.safetensors.index.json"
OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_pytorch_model.bin")


def _folder(repository: str, purpose: str, parameters: int, *files: str) -> Weight:
    """A model for transformers or open_clip; unless it is among the files, its weights are model.safetensors."""
    page = f"https://huggingface.co/{repository}"
    if not any(name.endswith((".safetensors", ".bin", ".index.json")) for name in files):
        files += ("model.safetensors",)
    url, name = f"{page}/resolve/main", repository.split("/")[1]
    return Weight(url, name, purpose, page, parameters=parameters, files=files)


HUB_FILE = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/main/(.+)")
_SIZES = {"tiny": 39, "small": 46, "base_plus": 81, "large": 224}
REGISTRY: dict[str, Weight] = {
    "openworldsam_coco": _openworldsam("1z2HEGAFqDZa7vuoqAl0FS6YiJsEOD-Ds", "model_final.pth"),
    "openworldsam_refcocog": _openworldsam("1yK6Yf5O5bAkCkuttwN4eZAu5RF_rAQ0z", "model_final_refcocog.pth"),
    **{f"sam2_hiera_{size}": _sam2(f"072824/sam2_hiera_{size}.pt", n) for size, n in _SIZES.items()},
    **{f"sam2.1_hiera_{size}": _sam2(f"092824/sam2.1_hiera_{size}.pt", n) for size, n in _SIZES.items()},
    "beit3_base": _beit3("beit3_base_patch16_224.pth", "BEiT-3", 276),
    "beit3_large": _beit3("beit3_large_patch16_224.pth", "BEiT-3", 746),
    "beit3_large_itc": _beit3("beit3_large_itc_patch16_224.pth", "BEiT-3 after image-text contrast", 674),
    "beit3_large_indomain": _beit3("beit3_large_indomain_patch16_224.pth", "BEiT-3 after COCO and VG", 746),
    "beit3_tokenizer": _beit3("beit3.spm", "tokenizer for every BEiT-3"),
    "evf_sam2_multitask": _evf_sam2("evf-sam2-multitask", "model.safetensors", "evf_sam2_multitask_bin"),
    "evf_sam2_multitask_bin": _evf_sam2("evf-sam2-multitask", "pytorch_model.bin", "evf_sam2_multitask"),
    "evf_sam2": _evf_sam2("evf-sam2"),
    "vilt": _folder(
        "dandelin/vilt-b32-mlm", "ViLT-B/32", 136, *MODEL_FILES, *TOKENIZER_FILES, "vocab.txt", "pytorch_model.bin"
    ),
    "siglip2_base": _folder("google/siglip2-base-patch16-224", "SigLIP 2", 375, "config.json", *TOKENIZER_FILES),
    "eva_clip": _folder("timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k", "EVA02-CLIP", 428, *OPEN_CLIP_FILES),
    "coca": _folder("laion/CoCa-ViT-L-14-laion2B-s13B-b90k", "CoCa ViT-L/14", 638, *OPEN_CLIP_FILES),
    "clip_large": _folder("openai/clip-vit-large-patch14", "CLIP ViT-L/14", 428, *MODEL_FILES, *TOKENIZER_FILES),
    "florence2_base": _folder("florence-community/Florence-2-base", "Florence-2", 231, *MODEL_FILES, *TOKENIZER_FILES),
    "blip2": _folder("Salesforce/blip2-itm-vit-g", "BLIP-2", 1172, *MODEL_FILES, *TOKENIZER_FILES),
    "kosmos2": _folder("microsoft/kosmos-2-patch14-224", "Kosmos-2", 1665, *MODEL_FILES, *TOKENIZER_FILES),
    "paligemma": replace(
        _folder("google/paligemma-3b-pt-224", "PaliGemma", 2923, *MODEL_FILES, *TOKENIZER_FILES, SHARDS),
        note=" Its page asks to accept the terms; the download needs the login of that account (hf auth login).",
    ),
}


class DownloadError(ValueError):
    """A failed download. The message says what happened and what to do."""


class _TransientError(DownloadError):
    """A failure that may not recur: worth another attempt."""


def _say(text: str, end: str = "\n") -> None:
    """Write a line to stderr, over the progress bar if there is one."""
    print(("\r\033[K" if sys.stderr.isatty() else "") + text, end=end, file=sys.stderr, flush=True)


class _Progress:
    """A bar on stderr, redrawn in place; draws nothing where stderr is not a terminal."""

    def __init__(self, start: int, total: int) -> None:
        self._start, self._total = start, total
        self._began = self._drawn = time.monotonic()

    def draw(self, done: int) -> None:
        now = time.monotonic()
        if now - self._drawn < 0.2 or not sys.stderr.isatty():
            return
        self._drawn = now
        rate = max(done - self._start, 1) / (now - self._began)
        total = self._total or done  # a full bar if the server did not announce a size
        bar, left = "#" * (20 * done // total), int((total - done) / rate)
        text = f"[{bar:.<20}] {done / 1e6:.1f} of {total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s"
        _say(f"{text}, {left // 60}:{left % 60:02d} left", end="")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as far as they are safe."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in SCHEMES:
        raise DownloadError(f"{url[:200]!r} is no https address, which nobody could change on its way here")


def _open(url: str, part: Path, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Request a file. Raises _TransientError if that may succeed later, otherwise DownloadError."""
    _check_scheme(url)
    headers["User-Agent"] = "openworldsam-download"  # some hosts refuse urllib's own name
    headers["Accept-Encoding"] = "identity"
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(_Redirects)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the remote file: start again
            part.unlink(missing_ok=True)
        kind = _TransientError if error.code in TRANSIENT_STATUS else DownloadError
        raise kind(f"the server answered HTTP {error.code} ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _TransientError(f"no connection ({getattr(error, 'reason', error)})") from error
    return response


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body as it arrives. Raises _TransientError when the connection breaks."""
    try:
        yield response.read(512)  # enough to recognise a web page
        while piece := response.read1(CHUNK):
            yield piece
    except (OSError, http.client.HTTPException) as error:
        raise _TransientError(f"the connection broke ({error})") from error


def _check_answer(headers: Message, first: bytes, name: str) -> None:
    """Raise DownloadError if an answer is not the bytes of the file of this name."""
    if (encoding := headers.get("Content-Encoding", "identity").lower()) != "identity":
        raise DownloadError(f"the answer is encoded ({encoding[:50]!r}), against the request")
    begins = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = headers.get_content_type()
    json_file = name.endswith(".json") and kind == "application/json"
    if (kind in WEB_PAGES and not json_file) or b"<html" in begins or begins.startswith((b"<!doctype", b"<?xml")):
        raise DownloadError("the answer is a web page (a quota notice, a login?), not the file")


def _fetch(weight: Weight, part: Path) -> None:
    """Complete ``part``. Raises as _open and _pieces do, and OSError if the part cannot be written."""
    origin = Path(f"{part}.origin")  # size of the remote file, and its ETag or date if the download can be resumed
    known, _, validator = (origin.read_text(errors="replace") if origin.exists() else "").partition("\n")
    offset, size = (_length(part), int(known)) if validator and known.isdecimal() and len(known) < 20 else (0, 0)
    if offset and offset == size:  # complete; the run that fetched it ended before the rename
        return
    # If-Range: if the remote file has changed since, the server sends all of it instead of the rest
    with _open(weight.url, part, {"Range": f"bytes={offset}-", "If-Range": validator} if offset else {}) as response:
        etag = response.headers.get("ETag", "")  # a weak one (W/...) does not guarantee equal bytes
        now = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        place = f"bytes {offset}-{size - 1}/{size}"
        if response.status != 206:
            offset, size = 0, response.length or 0
        elif response.headers["Content-Range"] != place or now not in ("", validator):
            part.unlink(missing_ok=True)
            raise _TransientError("the server does not continue where the part ends")
        pieces = _pieces(response)
        first = next(pieces)
        _check_answer(response.headers, first, weight.filename)
        if response.length is None and not response.chunked:
            raise DownloadError("the server does not say where the file ends")
        if size and size != (weight.size or size):
            raise DownloadError(f"the server has a file of {size:,} bytes, the published one has {weight.size:,}")
        progress = _Progress(offset, size)
        with part.open("r+b" if offset else "wb") as file:
            if not offset:
                origin.write_text(f"{size}\n{now if size else ''}")
            file.seek(offset)
            for piece in chain([first], pieces):
                offset += file.write(piece)
                if offset > (most := weight.size or MOST_BYTES):
                    raise DownloadError(f"the file has more than {most:,} bytes")
                progress.draw(offset)
    if not offset or offset != (size or offset):
        raise _TransientError(f"the connection ended after {offset} of {size} bytes")


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def check(path: Path, record: Path, published: str) -> str:
    """Compute a file's SHA-256. Raises DownloadError for another one than published or in ``record``, by sha256sum."""
    found, recorded = sha256(path), record.read_text(errors="replace").split()[:1] if record.exists() else []
    if published not in ("", found):
        advice = "It is damaged, or the publisher has changed it; delete it and run the command again"
        raise DownloadError(f"{path} has SHA-256 {found}, the published file {published}. {advice}")
    if recorded and recorded[0].lower() != found:
        advice = "Delete the one that you do not trust and run the command again"
        raise DownloadError(f"{path} has SHA-256 {found}, but {record} says {recorded[0]}. {advice}")
    return found


def _from_hub(repository: str, name: str, weight: Weight, target: Path, record: Path) -> str:
    """Fetch a file of Hugging Face through the client's cache, and link or copy it from there; raises as `download`."""
    from huggingface_hub import hf_hub_download

    try:
        cached = Path(os.path.realpath(hf_hub_download(repository, name)))
    except Exception as error:  # the client and its HTTP library have many, some of several lines
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise DownloadError(f"{reason}. {_by_hand(weight, target)}") from error
    found, link = check(cached, record, weight.sha256), Path(f"{target}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(cached, link)  # takes no space, and outlives the cache
    except OSError:  # on another disk
        shutil.copyfile(cached, link)
    record.write_text(f"{found}  {target.name}\n")
    os.replace(link, target)
    return found


def _by_hand(weight: Weight, target: Path) -> str:
    by_hand = f"or open {weight.url} on any machine and save it as {target}.{weight.note}"
    return f"To resume, run the same command again, {by_hand}"


def download(weight: Weight, target: Path) -> str:
    """Fetch a file, resuming an earlier run; returns its SHA-256.

    Raises DownloadError if that fails or the file is not the recorded one, OSError if it cannot be written.
    """
    part, record = Path(f"{target}.part"), Path(f"{target}.sha256")
    place = HUB_FILE.fullmatch(weight.url)
    if place and importlib.util.find_spec("huggingface_hub"):
        return _from_hub(place[1], place[2], weight, target, record)
    most, failures = _length(part), 0
    while True:
        try:
            _fetch(weight, part)
            break
        except DownloadError as error:
            failures = 1 if _length(part) > most else failures + 1
            most = max(most, _length(part))
            if failures == ATTEMPTS or not isinstance(error, _TransientError):
                raise DownloadError(f"{error}. {_by_hand(weight, target)}") from error
            _say(f"{target.name}: {error}; trying again")
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
    with part.open("r+b") as file:
        os.fsync(file.fileno())  # a power cut after the rename must not leave an empty file
    try:
        found = check(part, record, weight.sha256)
    except DownloadError:
        part.unlink()
        Path(f"{part}.origin").unlink(missing_ok=True)
        raise
    record.write_text(f"{found}  {target.name}\n")
    os.replace(part, target)
    Path(f"{part}.origin").unlink(missing_ok=True)
    return found


def _table(registry: Mapping[str, Weight], folder: Path) -> str:
    rows = [("NAME", "FILE", "GB", "HERE", "FOR", "TERMS")]
    for name, weight in registry.items():
        here = _here(weight, folder)
        rows.append((name, weight.filename, f"{weight.gigabytes:.2g}", here, weight.purpose, weight.terms_url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)) for row in rows)


def _here(weight: Weight, folder: Path) -> str:
    """Say whether a file, or all of a folder's, are here: yes, part or no."""
    try:
        targets = [folder / file.filename for file in _files(weight, folder)]
    except DownloadError:
        return "part"
    some = any(path.exists() or Path(f"{path}.part").exists() for path in targets)
    return "yes" if all(path.exists() for path in targets) else "part" if some else "no"


def _files(weight: Weight, folder: Path) -> Iterator[Weight]:
    """Yield a file, or those of a folder; the shards of an index follow it if it is there by then.

    Raises DownloadError for a damaged index.
    """
    for name in weight.files:
        file = Weight(
            f"{weight.url}/{name}", f"{weight.filename}/{name}", weight.purpose, weight.terms_url, weight.note
        )
        yield file
        index = folder / file.filename
        if name.endswith(".index.json") and index.exists():
            yield from _files(replace(weight, files=_shards(index)), folder)
    if not weight.files:
        yield weight


def _shards(index: Path) -> tuple[str, ...]:
    """Names of the shards of an index. Raises DownloadError if it is damaged."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not all(re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name) for name in names):
            raise ValueError("a name of a shard is none")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(f"{index} is damaged ({str(error)[:100]}); delete it and run the command again") from error
    return tuple(names)


def _get(weight: Weight, target: Path, verify: bool) -> str:
    """Fetch a missing file, verify an existing one; returns the message. Raises as download and check do."""
    record = Path(f"{target}.sha256")
    if target.exists() and not target.is_file():
        raise DownloadError("it is no file")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _say(f"{target}: fetching {weight.url}")
        return f"complete, SHA-256 {download(weight, target)}"
    Path(f"{target}.part.origin").unlink(missing_ok=True)  # of a run that was killed after the rename
    if verify and not (weight.sha256 or record.exists()):
        raise DownloadError(f"it cannot be verified, {record} is missing")
    return "already there" + (f", SHA-256 as it should be: {check(target, record, weight.sha256)}" if verify else "")


def names_of(files: Iterable[str | Path]) -> list[str]:
    """Names under which the public ones among some files are fetched, such as openworldsam_coco for model_final.pth."""
    names = {weight.filename: name for name, weight in REGISTRY.items()}
    return [names[file] for file in dict.fromkeys(Path(file).name for file in files) if file in names]


def fetch(names: Sequence[str], folder: Path | None = None) -> list[Path]:
    """Fetch files by their names unless they are there; says first, on stderr, which these are and how large.

    folder: by default the weights folder.

    Returns the paths of the files and folders. Raises KeyError for an unknown name, otherwise as `download` does.
    """
    weights = _find(names, REGISTRY)
    folder = folder or weights_folder()
    if missing := [weight for weight in weights if _here(weight, folder) != "yes"]:
        size = sum(weight.gigabytes for weight in missing)
        files = ", ".join(weight.filename for weight in missing)
        _say(f"fetching {files} ({size:.2g} GB) into {folder}; `openworldsam download --list` names their terms")
    for file in chain.from_iterable(_files(weight, folder) for weight in weights):
        _get(file, Path(os.path.realpath(folder / file.filename)), verify=False)  # a link is written through
    return [Path(os.path.realpath(folder / weight.filename)) for weight in weights]


def _find(names: Sequence[str], registry: Mapping[str, Weight]) -> list[Weight]:
    """Look up files by their names; raises KeyError with similar names for an unknown one."""
    for name in names:
        if name not in registry:
            near = " or ".join(difflib.get_close_matches(name, registry)) or "one of --list"
            raise KeyError(f"there is no {name}; did you mean {near}?")
    return [registry[name] for name in names]


def run(args: argparse.Namespace) -> None:
    """Run the command; exits with 1 if a file failed, 2 for an unknown name, 130 after Ctrl-C."""
    with user_errors("stopped; the same command again resumes"):
        folder = Path(os.path.realpath(args.output))
        if args.list or not args.names:
            print(_table(REGISTRY, folder))
        failed = False
        for weight in _find(args.names, REGISTRY):
            target = folder / weight.filename
            try:
                for file in _files(weight, folder):
                    target = Path(os.path.realpath(folder / file.filename))  # a link is written through
                    _say(f"{target}: {_get(file, target, args.verify)}")
            except (DownloadError, OSError) as error:
                failed = True
                kept = "; the same command again resumes" if isinstance(error, OSError) else ""
                _say(f"error: {target}: {error}{kept}")
        if failed:
            sys.exit(1)
