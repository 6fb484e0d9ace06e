"""The text: Jane Austen's novels and the Jargon File, in the public domain, from two Debian packages."""

import gzip
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("r-cran-janeaustenr", "jargon-text")
NOVELS = (
    "Emma",
    "Mansfield Park",
    "Northanger Abbey",
    "Persuasion",
    "Pride and Prejudice",
    "Sense and Sensibility",
)
"""In the order of the package's database."""
HELD_BACK = ("Emma", "Northanger Abbey", "Persuasion", "Pride and Prejudice")
"""The last chapters of these are never trained on."""

_NOVELS = Path("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
_JARGON = Path("usr/share/doc/jargon-text/jargon.txt.gz")
_CHAPTER = re.compile(r"\s*(chapter|volume)\s+[ivxlc\d]+\.?\s*", re.IGNORECASE)
_TABLE = re.compile(r"[│┌├└─]|Table of Contents")


@dataclass(frozen=True)
class Corpus:
    """Documents of one paragraph a line, separated into those to train on and those to measure with."""

    training: tuple[str, ...]
    held_back: tuple[str, ...]


def gather(folder: Path) -> Corpus:
    """Download the packages into `folder` with apt-get, where they are not there yet, and read them.

    Raises:
        subprocess.CalledProcessError: apt-get or dpkg-deb failed; their message is on standard error.

    """
    unpacked = folder / "unpacked"
    if not (unpacked / _NOVELS).exists() or not (unpacked / _JARGON).exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
        for package in sorted(folder.glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", str(package), str(unpacked)], check=True)
    texts = _novels((unpacked / _NOVELS).read_bytes())
    novels = {title: list(_chapters(lines)) for title, lines in zip(NOVELS, texts, strict=True)}
    jargon = gzip.decompress((unpacked / _JARGON).read_bytes()).decode().splitlines()
    held_back = tuple(novels[title].pop() for title in HELD_BACK)
    training = tuple(chapter for chapters in novels.values() for chapter in chapters)
    return Corpus(training=(*training, _jargon(jargon)), held_back=held_back)


def _novels(database: bytes) -> Iterator[list[str]]:
    """Yield the lines of each novel from an R lazy-load database.

    Such a file is a row of records, each a 4-byte big-endian length and that many bytes of zlib. A
    novel is one character vector in R's XDR form: each string has 4 bytes of flags whose last is 9
    (CHARSXP), a 4-byte big-endian length and its bytes (R Internals, "Serialization Formats").
    """
    at = 0
    while at < len(database):
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(database[at + 4 :])
        at = len(database) - len(unpacker.unused_data)
        here = data.index(b"\x00\x00\x00\x10") + 8  # past the vector's type (STRSXP) and its count
        lines = []
        while data[here + 3 : here + 4] == b"\x09":
            (size,) = struct.unpack_from(">i", data, here + 4)
            lines.append(data[here + 8 : here + 8 + max(size, 0)].decode())
            here += 8 + max(size, 0)
        yield lines


def _chapters(lines: list[str]) -> Iterator[str]:
    """Yield each chapter without its heading, leaving out the title page."""
    starts = [number for number, line in enumerate(lines) if _CHAPTER.fullmatch(line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        text = "\n".join(paragraph.replace("_", "") for paragraph in _paragraphs(lines[start + 1 : end]))
        text = re.sub(r"\n(THE END|FINIS|Finis|A NOTE ON THE TEXT)\b.*", "", text, flags=re.DOTALL)
        if text:
            yield text


def _jargon(lines: list[str]) -> str:
    """Return the running text of the Jargon File, without its tables and link marks."""
    first = next(number for number, line in enumerate(lines) if re.match(r"Chapter\s1\.", line))
    kept = (each for each in _paragraphs(lines[first:]) if not _TABLE.search(each))
    return "\n".join(re.sub(r"[{}]", "", paragraph) for paragraph in kept)


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Yield the runs of lines that are not blank, each as one line with single spaces."""
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        if paragraph := " ".join(block.split()):
            yield paragraph
