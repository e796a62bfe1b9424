"""Tables as records: CSV and TSV, Parquet, Arrow, folders saved by `datasets`. Rows come one at a time.

What is heavy is imported where such a file is read.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from lifelong_edit.errors import BadInputError, UsageError, first_line
from lifelong_edit.facts.compressed import SUFFIXES
from lifelong_edit.facts.dates import date_text
from lifelong_edit.facts.decoding import MAX_RECORD_BYTES, Element, checked

Kind = Literal["json", "csv", "parquet", "arrow"]
PARQUET, ARROW, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
TEXTS = ("subject", "prompt", "target", "target_new", "question", "answer", "completion", "output", "response")
"""Columns whose cells are text, whatever they look like."""
_LISTS = ("rephrases",)
_PROBES = ("locality", "portability")
_KNOWN = frozenset((*TEXTS, "relation", "object", "rephrases", "text", "instruction", "input", "claim", "label", "src"))
_SNIFFED = (",", "\t", ";", "|")


def kind_of(name: str, head: bytes) -> Kind:
    """What a file holds, by its first bytes and, of tables as text, its name."""
    if head.startswith(PARQUET):
        return "parquet"
    if head.startswith((ARROW, ARROW_STREAM)):
        return "arrow"
    return "csv" if separator_of(name, head) is not None else "json"


def separator_of(name: str, head: bytes) -> str | None:
    """What stands between the cells of a table as text; None where it is none.

    A file is one by its name, or where its first line names at least two columns of which one is known.
    """
    suffix = Path(bare_name(name)).suffix.casefold()
    begun = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if begun[:1] in (b"{", b"[") or (suffix not in SEPARATORS and suffix in (".json", ".jsonl", ".ndjson")):
        return None
    first = begun.splitlines()[0].decode("utf-8", "replace") if begun else ""
    counted = max(_SNIFFED, key=lambda mark: len(_columns(first, mark)))
    if suffix in SEPARATORS:
        own = SEPARATORS[suffix]
        return own if len(_columns(first, own)) > 1 else counted if len(_columns(first, counted)) > 1 else own
    columns = _columns(first, counted)
    return counted if len(columns) > 1 and _KNOWN.intersection(columns) else None


def bare_name(name: str) -> str:
    """A file's name without what says how it is compressed."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.casefold().endswith(suffix)), name)


def _columns(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])]


def read_csv(stream: IO[bytes], separator: str) -> Iterator[Element]:
    """The rows of a table as text, of which the first names the columns; empty cells are absent.

    In columns that are no text (`TEXTS`) a cell that holds a JSON list or object is that; one of `rephrases`,
    `locality` or `portability` is otherwise a list of one. A first column without a name, as pandas writes its index,
    is none.
    """
    stream.seek(0)
    rows = csv.reader(_decoded(stream), delimiter=separator, strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, BadInputError(f"found a broken table ({error}), expected cells in CSV; write it out again")
            return
        except BadInputError as error:
            yield rows.line_num + 1, error
            return
        begun, line = line, rows.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if (flaw := _header_flaw(header)) is not None:
                yield begun, flaw
                return
        elif len(cells) != len(header):
            yield (
                begun,
                BadInputError(
                    f"found {len(cells)} cells, expected {len(header)} as in the first line; put quotes around cells "
                    f"that hold a {separator!r}"
                ),
            )
        elif len("".join(cells)) > MAX_RECORD_BYTES:
            yield begun, BadInputError(f"found a row longer than {MAX_RECORD_BYTES} bytes, expected a shorter one")
        else:
            pairs = zip(header, cells, strict=True)
            yield begun, checked({name: _cell(name, cell) for name, cell in pairs if name and cell.strip()})


def _decoded(stream: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(_lines(stream)):
        try:
            text = line.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError:
            raise BadInputError("found bytes that are not UTF-8, expected text; save the file as UTF-8") from None
        if "\x00" in text:
            raise BadInputError("found a NUL byte, expected a table as text; remove it, or save the file as UTF-8")
        yield text


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines, whatever they end in, an old Mac's CR too; in bounded memory."""
    begun = b""
    while piece := stream.readline(MAX_RECORD_BYTES + 1):
        parts = (begun + piece).splitlines(keepends=True)
        begun = b"" if parts[-1].endswith((b"\n", b"\r")) else parts.pop()
        yield from parts
        if len(begun) > MAX_RECORD_BYTES:
            raise BadInputError(
                f"found a line longer than {MAX_RECORD_BYTES} bytes, expected a shorter one; split it up"
            )
    if begun:
        yield begun


def _header_flaw(header: Sequence[str]) -> BadInputError | None:
    if any(not name for name in header[1:]) or not any(header):
        return BadInputError("found a column without a name, expected names in the first line; name it or take it out")
    if twice := next((name for name in header if header.count(name) > 1), None):
        return BadInputError(f"found the column {twice[:40]!r} twice, expected each once; rename or drop one of them")
    return None


def _cell(name: str, cell: str) -> object:
    text = cell.strip()
    if name not in TEXTS and text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            pass
    if name in _LISTS:
        return [text]
    return [{"prompt": text}] if name in _PROBES else cell


def read_parquet(stream: IO[bytes]) -> Iterator[Element]:
    """The rows of a Parquet file."""
    import pyarrow.parquet

    yield from _batches(lambda: pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024))


def read_arrow(stream: IO[bytes]) -> Iterator[Element]:
    """The rows of an Arrow file, or of an Arrow stream in a file."""
    import pyarrow.ipc

    stream.seek(0)
    whole = stream.read(len(ARROW)) == ARROW
    stream.seek(0)

    def batches() -> Iterable[Any]:
        if not whole:
            return pyarrow.ipc.open_stream(stream)  # type: ignore[no-any-return]
        held = pyarrow.ipc.open_file(stream)
        return (held.get_batch(i) for i in range(held.num_record_batches))

    yield from _batches(batches)


def _batches(opened: Any) -> Iterator[Element]:
    import pyarrow

    number = 0
    try:
        for batch in opened():
            for row in batch.to_pylist():
                number += 1
                yield number, checked(as_json(row))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield (
            number + 1,
            BadInputError(
                f"found a table that cannot be read ({first_line(error)}), expected a whole one; write it anew"
            ),
        )


def as_json(value: object) -> Any:
    """A row of a table as JSON would hold it: without what has no value, dates as ISO 8601."""
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return date_text(value) if isinstance(value, datetime.date) else value


# -- folders that `datasets` has saved


def is_saved(folder: str) -> bool:
    """Whether a folder was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    place = Path(folder)
    return any((place / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_saved(folder: str) -> tuple[str, Iterator[Element]]:
    """The digest of all rows of a saved folder, and the rows. Raises UsageError for one of several splits."""
    place = Path(folder)
    if (place / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in place.glob("*/state.json"))
        if len(splits) != 1:
            told = ", ".join(f"{folder.rstrip('/')}/{split}" for split in splits) or "none"
            raise UsageError(
                f"found a data set of {len(splits)} splits in {folder!r}, expected one; name one of {told}"
            )
        place = place / splits[0]
    try:
        state = json.loads((place / "state.json").read_text(encoding="utf-8"))
        files = [place / held["filename"] for held in state["_data_files"]]
        digest = hashlib.blake2b(repr(state.get("_indices_data_files")).encode(), digest_size=16)
        for path in files:
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"cannot read the folder {folder!r} ({type(error).__name__}), expected one as `save_to_disk` writes it; "
            "write it again"
        ) from None
    return digest.hexdigest(), _saved_rows(place)


def _saved_rows(place: Path) -> Iterator[Element]:
    import datasets

    number = 0
    try:
        for row in datasets.load_from_disk(str(place)):
            number += 1
            yield number, checked(as_json(row))
    except Exception as error:  # what a bad file raises depends on its format
        reason = first_line(error)
        yield number + 1, BadInputError(f"found rows that cannot be read ({reason}), expected records; write them anew")
