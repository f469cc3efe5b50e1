"""A site without patients: answers the coordinator's plans by rule. Run as a process: the executor of one SuperNode."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedtwin_client.executor import execute_tasks
from fedtwin_shared.documents import verify_study
from fedtwin_shared.round import Task, verify_round_plan
from fedtwin_shared.signing import load_signing_key
from fedtwin_shared.supervision import stop_on_signals
from fedtwin_shared.wire import pack, unpack
from tests.server.consortium import sign_update, train_by_rule


def make_app(site: str, key: Ed25519PrivateKey, coordinator: str, study_file: Path, seconds: float) -> ClientApp:
    """The app of one site; a task takes `seconds`."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        envelope, parameters = unpack(message.content)
        plan = verify_round_plan(envelope, coordinator=coordinator)
        study = verify_study(study_file.read_bytes(), coordinator=coordinator).study
        time.sleep(seconds)
        arrays = train_by_rule(study, plan, parameters, site)
        return Message(pack(sign_update(site, key, envelope, arrays), arrays), reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    return app


def refuse(message: Message) -> Message:
    """A bundle that is not allowed; no test here sends one."""
    return Message(RecordDict({"refusal": ConfigRecord({"code": Task.TRAIN.value})}), reply_to=message)


def main(configuration: str) -> None:
    """Execute tasks until a signal."""
    values = json.loads(configuration)
    app = make_app(
        values["site"],
        load_signing_key(Path(values["key"])),
        values["coordinator"],
        Path(values["study"]),
        float(values["seconds"]),
    )
    with stop_on_signals() as stop:
        execute_tasks(
            values["runtime"],
            app,
            allowed_bundles=frozenset([values["bundle"]]),
            refuse=refuse,
            stop=stop,
            secret_file=Path(values["secret"]),
        )


if __name__ == "__main__":
    main(sys.argv[1])
