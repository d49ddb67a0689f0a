"""What DICOM pixels can show of FAULTS.md (rows 15 to 17): polarity, units, codecs, codestreams that lie."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medsynth.scans import read_scan
from medsynth.scans.dicom import header
from tests.dicom_files import (
    compressed,
    dataset,
    enhanced_of,
    noise,
    picture,
    runs,
    series_of,
    write,
    write_series,
)
from tests.scans.refusing import peak_of, refused


def test_fault_15_no_pixel_data(tmp_path):
    made = picture()
    del made.PixelData
    assert "need PixelData, got none" in refused(write(made, tmp_path / "one"), header=True)
    del made.Rows
    assert "need at least one pixel" in refused(write(made, tmp_path / "one"))
    made.SOPClassUID = uid.BasicTextSRStorage
    assert "need an image, got Basic Text SR Storage" in refused(write(made, tmp_path / "one"))
    floats = picture()
    del floats.PixelData
    floats.FloatPixelData = np.zeros(48, np.float32).tobytes()
    assert "got FloatPixelData" in refused(write(floats, tmp_path / "one"))


def test_fault_15_a_codec_that_nothing_knows(tmp_path, monkeypatch):
    for syntax, said in (("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile"), ("1.2.3.4", "1.2.3.4")):
        made = picture(PixelData=encapsulate([bytes(96)]))
        made["PixelData"].is_undefined_length = True
        path = tmp_path / "one"
        write(made, path, syntax=uid.HTJ2KLossless)
        old, new = uid.HTJ2KLossless.encode(), syntax.encode().ljust(24, b"\0")
        path.write_bytes(path.read_bytes().replace(old.ljust(24, b"\0"), new))
        assert f"need a transfer syntax that can be decoded, got {said}" in refused(path, header=True)

    class Absent:
        is_available = False

    monkeypatch.setattr(header, "get_decoder", lambda syntax: Absent)
    path = write(made, tmp_path / "one", syntax=uid.JPEGLosslessSV1)
    said = refused(path, header=True)
    assert "need a decoder of JPEG Lossless, Non-Hierarchical, First-Order" in said
    assert said.endswith("try pip install 'medsynth-diffusion[dicom]'")


@pytest.mark.parametrize("bits_stored", [16, 12])
@pytest.mark.parametrize("signed", [False, True])
def test_fault_16_monochrome_1_signed_and_rescaled(tmp_path, bits_stored, signed):
    low, high = (-(1 << bits_stored - 1), (1 << bits_stored - 1) - 1) if signed else (0, (1 << bits_stored) - 1)
    stored = np.linspace(low, high, 48).reshape(6, 8).astype(np.int16 if signed else np.uint16)
    made = dataset(stored, modality="CR")
    made.BitsStored, made.HighBit = bits_stored, bits_stored - 1
    np.testing.assert_array_equal(read_scan(write(made, tmp_path / "one")).array[0], stored)
    made.PhotometricInterpretation = "MONOCHROME1"
    inverted = low + high - stored.astype(np.int64)
    scan = read_scan(write(made, tmp_path / "one"))
    np.testing.assert_array_equal(scan.array[0], inverted)
    assert (scan.array.dtype, scan.array.max()) == (stored.dtype, high)
    made.RescaleSlope, made.RescaleIntercept = 2, -10
    np.testing.assert_array_equal(read_scan(write(made, tmp_path / "one")).array[0], inverted * 2 - 10)


def test_fault_16_hounsfield_units_have_no_polarity(tmp_path):
    stored = noise(3, 6, 8)
    slices = series_of(stored, slope=1, intercept=-1024, PhotometricInterpretation="MONOCHROME1")
    scan = read_scan(write_series(slices, tmp_path / "ct"))
    np.testing.assert_array_equal(scan.array[0], stored.transpose(2, 1, 0)[:, ::-1] - 1024.0)


def test_fault_17_executable_preamble(tmp_path):
    preamble = b"MZ\x90\0" + b"This program cannot be run in DOS mode."
    path = write(picture(), tmp_path / "one", preamble=preamble)
    assert path.read_bytes().startswith(preamble)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.array[0], noise(6, 8))
    assert (dict(scan.attributes), dict(scan.provenance), scan.label) == ({}, {}, None)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "got RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "got PALETTE COLOR"),
        ({"PhotometricInterpretation": ""}, "got none"),
        ({"NumberOfFrames": 3}, "need one frame, or a position for every frame, got 3"),
        ({"NumberOfFrames": -1}, "need at least one pixel"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "need 8, 16 or 32 bits per pixel, got 1 of 1"),
        ({"BitsStored": 17}, "got 17 of 16"),
        ({"BitsStored": 12, "HighBit": 15}, "got HighBit 15"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "need a RescaleSlope other than 0"),
        ({"ModalityLUTSequence": [Dataset()]}, "got a Modality LUT"),
        ({"InConcatenationTotalNumber": 2}, "got a part of a concatenation"),
        ({"Rows": 7}, "need 112 bytes of pixels for 1 x 7 x 8, got 96"),
        ({"PixelData": bytes(100_000)}, "need 96 bytes of pixels for 1 x 6 x 8, got 100000"),
    ],
)
def test_pixels_that_make_no_scan(tmp_path, elements, said):
    assert said in refused(write(picture(**elements), tmp_path / "one"), header=True)


def test_truncated_files(tmp_path):
    path = write(picture(), tmp_path / "one.dcm")
    whole = path.read_bytes()
    for length in (0, 4, 131, 132, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path)
        refused(path, header=True)


# Compressed pixels -----------------------------------------------------------------------------------------------------


def coded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def test_compressed_pictures_are_exact(tmp_path):
    stored = noise(20, 24, dtype="uint16") * 300
    made = dataset(stored, modality="CR")
    codestream = coded(stored, "JPEG2000", irreversible=False, no_jp2=True)
    path = compressed(made, [codestream], tmp_path / "one", uid.JPEG2000Lossless)
    np.testing.assert_array_equal(read_scan(path).array[0], stored)
    bytes_ = noise(20, 24, dtype="uint8")
    path = compressed(dataset(bytes_, modality="CR"), [runs(bytes_)], tmp_path / "one", uid.RLELossless)
    np.testing.assert_array_equal(read_scan(path).array[0], bytes_)
    smooth = np.tile(np.arange(24, dtype=np.uint8) * 9, (20, 1))
    path = compressed(dataset(smooth, modality="CR"), [coded(smooth, "JPEG")], tmp_path / "one", uid.JPEGBaseline8Bit)
    np.testing.assert_allclose(read_scan(path).array[0], smooth, atol=4)


def test_lossless_jpeg_by_the_extra(tmp_path):
    gdcm = pytest.importorskip("gdcm")
    stored = noise(4, 20, 24)
    plain = write_series(series_of(stored), tmp_path / "plain")
    (tmp_path / "packed").mkdir()
    for name in ("JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless"):
        for file in plain.iterdir():
            reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
            reader.SetFileName(str(file))
            assert reader.Read()
            change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
            change.SetInput(reader.GetImage())
            assert change.Change()
            writer.SetFileName(str(tmp_path / "packed" / file.name))
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            assert writer.Write()
        np.testing.assert_array_equal(read_scan(tmp_path / "packed").array[0], stored.transpose(2, 1, 0)[:, ::-1])


def test_a_codestream_larger_than_the_header_says(tmp_path):
    made = dataset(noise(20, 24, dtype="uint8"), modality="CR")
    large = np.zeros((6000, 6000), np.uint8)
    for syntax, frame in (
        (uid.JPEG2000Lossless, coded(large, "JPEG2000", no_jp2=True)),
        (uid.JPEG2000Lossless, coded(large, "JPEG2000", no_jp2=False)),
        (uid.JPEGBaseline8Bit, coded(large, "JPEG")),
        (uid.JPEGLSLossless, b"\xff\xd8\xff\xf7\0\x0b\x08\x17\x70\x17\x70\x01\x01\x11\0" + bytes(39) + b"\xff\xd9"),
    ):
        path = compressed(made, [frame], tmp_path / "bomb", syntax)
        assert "need compressed frames of 20 x 24 of 1 channel, got 6000 x 6000 of 1" in refused(path)
        assert peak_of(path)[1] < 40
    path = compressed(made, [coded(np.zeros((20, 24, 3), np.uint8), "JPEG")], tmp_path / "bomb", uid.JPEGBaseline8Bit)
    assert "got 20 x 24 of 3" in refused(path)
    for frame in (b"\xff\xd8", bytes(100), b"\xff\xd8" + b"\xff" * 50):
        refused(
            compressed(made, [frame.ljust(len(frame) + len(frame) % 2, b"\0")], tmp_path / "bomb", uid.JPEGBaseline8Bit)
        )


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG", uid.JPEGBaseline8Bit), ("JPEG2000", uid.JPEG2000Lossless)])
def test_a_codestream_that_is_cut_off(tmp_path, kind, syntax):
    pixels = noise(20, 24, dtype="uint8")
    frame = coded(pixels, kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    read_scan(compressed(dataset(pixels, modality="CR"), [frame], tmp_path / "one", syntax))
    for length in (len(frame) // 2, len(frame) - 2):
        path = compressed(dataset(pixels, modality="CR"), [frame[: length - length % 2]], tmp_path / "one", syntax)
        assert "cut off" in refused(path)


def test_an_rle_bomb(tmp_path):
    made = dataset(noise(20, 24, dtype="uint8"), modality="CR")
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 1_000_000
    path = compressed(made, [frame], tmp_path / "bomb", uid.RLELossless)
    assert "need RLE segments of 480 bytes, got a longer one" in refused(path)
    assert peak_of(path)[1] < 40


def test_frames_that_are_missing(tmp_path):
    slices = series_of(noise(3, 20, 24, dtype="uint8"))
    frames = [runs(noise(3, 20, 24, dtype="uint8")[number]) for number in range(3)]
    whole = read_scan(compressed(enhanced_of(slices), frames, tmp_path / "one", uid.RLELossless))
    np.testing.assert_array_equal(whole.array[0], noise(3, 20, 24, dtype="uint8").transpose(2, 1, 0)[:, ::-1])
    refused(compressed(enhanced_of(slices), frames[:2], tmp_path / "one", uid.RLELossless))
