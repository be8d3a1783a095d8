"""The ClientApp: it answers messages of the kind train, each in a process that Flower begins."""

from __future__ import annotations

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .answering import answer
from .messages import ARRAYS, METRICS, arrays_of, parcel_in
from .settings import node_settings


def reply(message: Message, _context: Context) -> Message:
    """Returns the answer as a parcel, and what it says of itself. Raises ParcelError, TrainingFailed."""
    parcel, metrics = answer(parcel_in(message.content), node_settings(), message.metadata.ttl)
    content = RecordDict({ARRAYS: arrays_of(parcel), METRICS: MetricRecord(metrics)})
    return Message(content, reply_to=message)


app = ClientApp()
app.train()(reply)
