"""A parcel in the records of a Flower message: an array of bytes, which Flower sends in parts."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from .parcel import ParcelError

ARRAYS = "arrays"
METRICS = "metrics"
_PARCEL = "parcel"
_TYPE = "edgetune-parcel"  # nothing that Flower or numpy would read as an array


def arrays_of(parcel: bytes) -> ArrayRecord:
    return ArrayRecord({_PARCEL: Array(dtype="uint8", shape=(len(parcel),), stype=_TYPE, data=parcel)})


def parcel_in(content: RecordDict) -> bytes:
    """Returns the bytes of the one parcel in a message. Raises ParcelError if there is none."""
    record = content.array_records.get(ARRAYS)
    array = record.get(_PARCEL) if record is not None else None
    if array is None or array.stype != _TYPE:
        raise ParcelError("a message has no parcel of edgetune")
    return bytes(array.data)
