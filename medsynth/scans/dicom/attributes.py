"""What a written DICOM file says of itself: that it is synthetic, whose it is, and what its standard asks of its kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from medsynth.scans.limits import one_line
from medsynth.scans.scan import Scan

CLASSES = {
    "CT": uid.CTImageStorage,
    "MR": uid.MRImageStorage,
    "CR": uid.ComputedRadiographyImageStorage,
    "OT": uid.SecondaryCaptureImageStorage,
}
MANUFACTURER = "Synthetic"  # never a name that readers take for a vendor's and its private habits
_SHORT, _LONG = 64, 1024  # characters of a line, bytes of a text

# What each kind of image must say beyond what all say; empty where the standard allows not to know.
_OWN: Mapping[str, Mapping[str, object]] = {
    "CT": {"KVP": None, "AcquisitionNumber": None, "PatientPosition": "HFS"},
    "MR": {
        "PatientPosition": "HFS",
        "ScanningSequence": "RM",  # research mode: no sequence made it
        "SequenceVariant": "NONE",
        "ScanOptions": None,
        "MRAcquisitionType": "3D",  # a model makes the volume as a whole
        "EchoTime": None,
        "EchoTrainLength": None,
        "RepetitionTime": None,
    },
    "CR": {"BodyPartExamined": None, "ViewPosition": None, "PatientOrientation": None},
    "OT": {"ConversionType": "SYN", "PatientOrientation": None},
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a written scan is: a patient that does not exist, and UIDs that follow from the scan alone."""

    patient: str
    digest: str

    def uid(self, *words: str) -> uid.UID:
        """Return the UID that belongs to the scan and to `words`."""
        return uid.generate_uid(entropy_srcs=["medsynth", self.patient, self.digest, *words])


def identify(scan: Scan, modality: str, patient_id: str | None) -> Identity:
    """Return the identity of a scan: equal scans have the same, and one that differs in a voxel or its origin another.

    The patient is `patient_id`, else `SYNTH-` and 16 digits.
    """
    array = np.ascontiguousarray(scan.array)
    told = [modality, str(array.dtype), list(array.shape), scan.affine.tolist(), scan.label, dict(scan.provenance)]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    digest.update(array.tobytes())
    return Identity(patient=patient_id or f"SYNTH-{digest.hexdigest()[:16]}", digest=digest.hexdigest())


def describe(scan: Scan, modality: str, identity: Identity) -> Dataset:
    """Return the elements that all files of a scan share, but for those of its pixels and its place."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID = CLASSES[modality]
    made.ImageType = ["DERIVED", "SECONDARY", *{"CT": ["AXIAL"], "MR": ["OTHER"]}.get(modality, [])]
    made.Modality = modality
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "Laterality"):
        setattr(made, keyword, "")
    made.PatientID, made.PatientName = identity.patient, identity.patient.replace("-", "^", 1)
    made.PatientBirthDate = made.PatientSex = ""
    made.StudyInstanceUID, made.SeriesInstanceUID = identity.uid("study"), identity.uid("series")
    made.StudyID, made.SeriesNumber = "SYNTH", 1
    mark_synthetic(made, scan.provenance)
    made.SeriesDescription = line(f"SYNTHETIC {modality} {scan.label or ''}")
    for keyword, value in _OWN[modality].items():
        setattr(made, keyword, value)
    return made


def mark_synthetic(made: Dataset, provenance: Mapping[str, str]) -> None:
    """Say in the three ways of the standard that a data set was synthesized, and by what."""
    generator = line(str(provenance.get("generator") or "")) or "unknown generator"
    origin = " ".join(f"{key}={value}" for key, value in sorted(provenance.items()))
    made.SyntheticData = "YES"
    made.Manufacturer = MANUFACTURER
    made.DerivationDescription = text(f"SYNTHETIC, shows no patient: {origin}")
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [code("109100", "DCM", "Synthesizing Equipment")]
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = generator
    equipment.ContributionDescription = text(origin)
    made.ContributingEquipmentSequence = [equipment]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a sequence of codes."""
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def meta_of(made: Dataset) -> FileMetaDataset:
    """Return the file meta information of a data set: explicit, little endian, not compressed."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return meta


def line(words: str) -> str:
    """Return words as one value of at most 64 characters."""
    return one_line(words).replace("\\", "/").strip()[:_SHORT].strip()


def text(words: str) -> str:
    """Return words as a text of at most 1024 bytes."""
    return one_line(words).replace("\\", "/").strip().encode()[:_LONG].decode(errors="ignore").strip()
