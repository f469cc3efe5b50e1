"""The hospital as a Flower ClientApp: glue between a message and `Hospital.answer`.

Design note: `app` is what the hospital's own executor runs, and the name that the coordinator's bundle gives. It finds
the hospital's directory in an environment variable that `fedtwin client run` sets, never in a message. A simulation
makes an app of its own, which finds one of many hospitals by the context's node.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedtwin_client.config import DIRECTORY_VARIABLE, read_directory
from fedtwin_client.hospital import Hospital
from fedtwin_client.installation import Installation, open_installation
from fedtwin_client.secure_site import AnswersOrders
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.round import Arrays, RefusalCode
from fedtwin_shared.secagg.order import ROUTES
from fedtwin_shared.wire import pack, pack_bytes, unpack, unpack_bytes


def make_client_app(find: Callable[[Context], Hospital]) -> ClientApp:
    """Return an app whose train and evaluate tasks are answered by the hospital that `find` names."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        return Message(pack(*find(context).answer(*_read(message))), reply_to=message)

    # What is asked stands in the signed plan; Flower's message type only routes.
    app.train()(answer)
    app.evaluate()(answer)
    return app


def make_secure_app(find: Callable[[Context], AnswersOrders]) -> ClientApp:
    """Return an app in which the site that `find` names answers the orders of secure aggregations."""
    app = ClientApp()
    add_secure_routes(app, find)
    return app


def add_secure_routes(app: ClientApp, find: Callable[[Context], AnswersOrders]) -> None:
    """Add a route for each phase of a secure aggregation."""

    def answer(message: Message, context: Context) -> Message:
        try:
            order = unpack_bytes(message.content)
        except VerificationError:
            order = b""  # no order, so a refusal
        return Message(pack_bytes(find(context).answer(order)), reply_to=message)

    for route in ROUTES.values():
        app.train(route)(answer)


@functools.cache
def installation() -> Installation:
    """Return this process's own hospital, opened once. Raises `ConfigurationError`, `JournalError`."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if not directory:
        raise ConfigurationError(field=DIRECTORY_VARIABLE, expected="the hospital's directory", found="nothing")
    return open_installation(read_directory(Path(directory)))


def refuse_message(message: Message) -> Message:
    """Return the signed refusal of a message that came with a bundle this site does not know."""
    envelope, _ = _read(message)
    return Message(pack(installation().hospital.refuse(envelope, RefusalCode.BUNDLE_UNKNOWN), {}), reply_to=message)


def _read(message: Message) -> tuple[bytes, Arrays]:
    """A content of any other form is an empty envelope: no signature, so a refusal."""
    try:
        return unpack(message.content)
    except VerificationError:
        return b"", {}


app = make_client_app(lambda context: installation().hospital)
