"""Ways in which `tests.slow.fuzz` spoils sound files; each is `(content, chance) -> content`."""

from __future__ import annotations

import gzip
import io
import json
import math
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Spoil = Callable[[bytes, random.Random], bytes]

_NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 30000)
_FLOATS = (0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), 0.5, -0.0)
# What text files must stand: ways out of a folder, formulas, marks, other types, nesting, references, and what would run.
_WORDS = (
    "", " ", ",", ";", "\t", "\n", "\r\n", '"', '""', "'", ":", "-", "#", "\0", "\ufeff", "\u202e", "\N{LUNGS}", "é" * 50,
    "../../x", "/etc/passwd", "C:\\x", "a/../b", "scan.npz#train/0", "https://example.org/x.png", "~", "CON", "x" * 5000,
    "=1+1", "@SUM(1)", "nan", "NaN", "inf", "1e999", "-1", "0", "99999999999999999999", "0x1F", "1_000", "null", "true", "no",
    "[]", "{}", "[[]]", "{a: {b: c}}", "[" * 3000, "{a: " * 1000, "- " * 1000, "&a [*a]", "*b", "!!python/name:os.system",
    "!!python/object/apply:os.system [ls]", "!!binary aGk=", "2026-01-01", "{{out}}", "{out}", "class_path", "<<: *x", "? ", "|",
    "train", "val", "test", "label", "path", "patient_id", "split", "root", "mask",
)  # fmt: skip


def spoil_bytes(content: bytes, chance: random.Random) -> bytes:
    """Change, remove, repeat, insert or cut off bytes, one to four times; half of the changes fall on the first 512."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        place = chance.randrange(min(len(data), 512) if chance.random() < 0.5 else len(data))
        length = min(len(data) - place, chance.choice((1, 2, 4, 8, 64, 1000)))
        kind = chance.randrange(8)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length] * chance.choice((1, 2, 50))
        elif kind == 4:
            data[place:place] = chance.randbytes(length)
        elif kind == 5:
            data[place : place + length] = bytes(length)
        elif kind == 6:
            del data[place:]
        else:
            number = struct.pack(chance.choice("<>") + "q", chance.choice(_NUMBERS))
            data[place : place + chance.choice((2, 4, 8))] = number[: chance.choice((2, 4, 8))]
    return bytes(data)


def spoil_numbers(content: bytes, chance: random.Random) -> bytes:
    """Put one to four NaNs, infinities or enormous numbers (float32) into the second half, where safetensors holds numbers."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) // 2, len(data) - 4) & ~3
        data[place : place + 4] = struct.pack("<f", chance.choice((math.nan, math.inf, -math.inf, 3e38, -3e38)))
    return bytes(data)


def spoil_text(content: bytes, chance: random.Random) -> bytes:
    """Replace, insert, remove or repeat words and lines of a text file, one to four times."""
    text = content.decode("utf-8", "replace")
    for _ in range(chance.randint(1, 4)):
        parts = re.split(r"(\s+|[,:;\[\]{}\"])", text)
        place = chance.randrange(len(parts))
        kind = chance.randrange(5)
        if kind == 0:
            parts[place] = chance.choice(_WORDS)
        elif kind == 1:
            parts.insert(place, chance.choice(_WORDS))
        elif kind == 2:
            del parts[place : place + chance.choice((1, 2, 10))]
        elif kind == 3:
            parts[place:place] = parts[place : place + chance.choice((1, 5, 30))]
        else:
            other = chance.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        text = "".join(parts)
    return text.encode("utf-8", "surrogatepass")


def spoil_nifti_header(content: bytes, chance: random.Random) -> bytes:
    """Give fields of a NIfTI-1 header other values, and pack it again if it was packed."""
    packed = content[:2] == b"\x1f\x8b"
    data = bytearray(gzip.decompress(content) if packed else content)
    for _ in range(chance.randint(1, 3)):
        # dim, datatype, bitpix, pixdim, vox_offset, slope, intercept, units, forms, rows, quaternion, magic
        place, form = chance.choice(
            [(40 + 2 * n, "h") for n in range(8)] + [(70, "h"), (72, "h"), (252, "h"), (254, "h"), (123, "b"), (0, "i")]
            + [(76 + 4 * n, "f") for n in range(8)] + [(108 + 4 * n, "f") for n in range(3)]
            + [(256 + 4 * n, "f") for n in range(18)] + [(344, "i"), (348, "i"), (352, "i"), (356, "i")]
        )  # fmt: skip
        size = struct.calcsize(form)
        if form == "f":
            data[place : place + 4] = struct.pack("<f", np.float32(np.clip(chance.choice(_FLOATS), -3e38, 3e38)))
        else:
            data[place : place + size] = (chance.choice(_NUMBERS) % 256**size).to_bytes(size, "little")
    return gzip.compress(bytes(data), mtime=0) if packed else bytes(data)


def spoil_png_chunk(content: bytes, chance: random.Random) -> bytes:
    """Spoil, drop, repeat or move chunks of a PNG; their checksums are right again afterwards."""
    chunks, place = [], 8
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append([content[place + 4 : place + 8], content[place + 8 : place + 8 + length]])
        place += 12 + length
    for _ in range(chance.randint(1, 2)):
        number = chance.randrange(len(chunks))
        kind = chance.randrange(5)
        if kind <= 1:
            chunks[number][1] = spoil_bytes(chunks[number][1], chance)
        elif kind == 2:
            chunks.insert(chance.randrange(len(chunks)), list(chunks[number]))
        elif kind == 3 and len(chunks) > 1:
            del chunks[number]
        else:
            key = chance.choice((b"medsynth.rescale", b"medsynth.affine", b"medsynth.provenance"))
            text = chance.choice(
                (b"{}", b"[1]", b"[" * 5000, b'{"slope": 1e999, "offset": 0, "dtype": "float64"}', b"nan")
            )
            chunks.insert(1, [chance.choice((b"tEXt", b"iTXt", b"acTL")), key + b"\0" + text])
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def spoil_npz_member(content: bytes, chance: random.Random) -> bytes:
    """Spoil arrays or names inside an NPZ, and pack it again with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        members = {entry: packed.read(entry) for entry in packed.namelist()}
    name = chance.choice(list(members))
    body = members.pop(name)
    if chance.random() < 0.2:
        name = chance.choice(
            ("image.npy", "channels.npy", "label.npy", "train_images.npy", "affine.npy", "x.npy", "../x.npy")
        )
    shape = chance.choice(("(-1,)", "(99999, 99999, 99999)", "()", "(0,)", "(16,)", "('a',)", "[" * 3000))
    kind = chance.choice(("'|O'", "'<U99999999'", "'<f2'", "'>c8'", "'<M8[s]'", "[('a', '<i4')]", "'|V8'", "'<q'"))
    lies = (
        (rb"'shape': \([^)]*\)", f"'shape': {shape}".encode()),
        (rb"'descr': '[^']*'", f"'descr': {kind}".encode()),
        (rb"False", b"True"),
    )
    pattern, lie = chance.choice(lies)
    if chance.random() < 0.5:
        head, rest = body[:10], re.sub(pattern, lambda _: lie, body[10:], count=1)
        body = (
            head[:8]
            + (len(rest) - (len(body) - 10) + int.from_bytes(head[8:10], "little")).to_bytes(2, "little")
            + rest
        )
    else:
        body = spoil_bytes(body, chance)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as packed:
        for entry, kept in [*members.items(), (name, body)]:
            packed.writestr(entry, kept)
    return stream.getvalue()


def spoil_json(content: bytes, chance: random.Random) -> bytes:
    """Give values anywhere in a JSON object other types and sizes, or remove them."""
    found = json.loads(content)
    for _ in range(chance.randint(1, 3)):
        place: Any = found
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.8:
                place = place[key]
                continue
            if chance.random() < 0.2:
                del place[key]
            else:
                place[key] = chance.choice([*_NUMBERS, *_FLOATS, *_WORDS, None, True, [], {}, [[1]], ["a"] * 3, 10**30])
            break
    return json.dumps(found).encode("utf-8", "surrogatepass")
