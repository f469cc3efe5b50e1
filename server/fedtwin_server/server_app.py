"""The coordinator's ServerApp: asks sites, waits within bounds, verifies what comes back, checkpoints every round.

Design note: everything that decides is in `rounds.py`; here is only what touches Flower's Grid, the clock and the
store. A round never waits for ever (Flower's own node sampling does), and nothing that a site sends can end a run:
an answer that does not verify is counted and ignored.
The same app runs on a real SuperLink and on the one-process Grid of simulations, where every reply is there at once.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedtwin_server.config import DIRECTORY_VARIABLE, read_directory
from fedtwin_server.errors import RunError
from fedtwin_server.pace import Pace
from fedtwin_server.proof import describe_proof, fix_proof, proof_rule
from fedtwin_server.release import describe_measurement, describe_record, describe_run
from fedtwin_server.rounds import (
    Answers,
    RoundResult,
    RunState,
    finish_round,
    is_settled,
    measure,
    model_to_send,
    plan_round,
    release_model,
)
from fedtwin_server.run_store import FileRunStore, RunStore
from fedtwin_server.runs import STUDY, run_directory
from fedtwin_server.strategy import aggregate_updates
from fedtwin_server.studies import read_signed
from fedtwin_shared.documents import SignedStudy
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.ledger.entry import TaskKey
from fedtwin_shared.ledger.evidence import EvidenceError, Expected, verify_evidence
from fedtwin_shared.ledger.study_programme import task_uses
from fedtwin_shared.ledger.witnesses import WITNESSES, Witnesses, hospital_log_key, read_witnesses
from fedtwin_shared.models import Parameters
from fedtwin_shared.round import Refusal, RoundPlan, SiteUpdate, Task, sign_round_plan, verify_answer
from fedtwin_shared.signing import digest, load_signing_key
from fedtwin_shared.wire import pack, unpack_answer

LOGGER = logging.getLogger("fedtwin.coordinator")

ASK_SECONDS = 1.0  # between two looks at who is online
SHORTEST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
PAUSE_SHARE = 0.02  # of the time waited so far: polling makes a round at most this much longer, and long ones cheap
ASKS = 3  # how often one node is asked in one round when the transport fails

# Flower's error codes, which its documentation lists and its public API does not name.
TRANSPORT_ERRORS = {
    1: "app-not-loaded",
    2: "app-failed",
    3: "message-unavailable",
    4: "reply-unavailable",
    5: "node-unavailable",
    6: "precondition-failed",
    7: "bundle-refused",
    8: "app-crashed",
}
NOT_SENT = "not-sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a signed study: what the app needs beside Flower. `clock` counts seconds from anywhere.

    witnesses: an update counts only with proof that its hospital charged for it in a ledger which enough of them have
    seen; None: no proof is asked for. A study without privacy charges nothing, and needs none.
    """

    signed: SignedStudy
    key: Ed25519PrivateKey
    store: RunStore
    witnesses: Witnesses | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def make_server_app(find_run: Callable[[Context], Run]) -> ServerApp:
    """Return the app that conducts the run that `find_run` finds for a Flower context."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run = find_run(context)
        try:
            conduct(run, grid)
        finally:
            run.store.close()

    return server_app


def open_run(context: Context) -> Run:
    """Return the run that the context names, of the coordinator's directory that the environment names.

    Raises `ConfigurationError`, `RunError`, `VerificationError`. The run is held until its store is closed.
    """
    root = os.environ.get(DIRECTORY_VARIABLE)
    if not root:
        raise ConfigurationError(field=DIRECTORY_VARIABLE, expected="a coordinator's directory", found="nothing")
    directory = read_directory(Path(root))
    folder = run_directory(directory, str(context.run_config.get("run", "")))
    return Run(
        signed=read_signed(directory, folder / STUDY),
        key=load_signing_key(directory.signing_key),
        store=FileRunStore(folder),
        witnesses=read_witnesses(directory.root / WITNESSES),
    )


def conduct(run: Run, grid: Grid) -> RunState:
    """Conduct the run from its stored state to its end and return the final state.

    Raises `RunError` when too few sites answered before a round's deadline; the state then says so. Raises it, too,
    for a run that began with other witnesses.

    - every round is stored before the next one is asked
    - a run that was killed anywhere and is conducted again ends with the same bits
    """
    study, state = run.signed.study, run.store.load()
    if state.study != study.digest:
        raise RunError(field="study", expected=f"the run's study {state.study}", found=study.digest)
    # A prepared run has it in its first state; else it is durable with the first round that counts.
    state = fix_proof(state, proof_rule(study, run.witnesses))
    paces = dict.fromkeys(Task, Pace())
    while (plan := plan_round(study, state)) is not None:
        # The stored state names this plan, so it was durable before the first message goes out.
        began = run.clock()
        answers, paces[plan.task] = exchange(run, grid, plan, model_to_send(study, state), pace=paces[plan.task])
        result = finish_round(study, state, answers, aggregate=aggregate_updates)
        if answers.evidence:  # before the state that counts them, so that no counted update is without
            run.store.prove(plan, answers.evidence)
        run.store.save(result.state)
        _note(run, result, seconds=run.clock() - began)
        if not result.counts:
            raise RunError(
                field=f"{plan.task} {plan.round}",
                expected=f"answers of {study.training.minimum_sites} sites",
                found=f"{len(answers.updates)} within {study.training.deadline_seconds:g} s",
            )
        state = result.state
    report = {**describe_run(study, state), "proof": describe_proof(state, run.store)}
    run.store.release(release_model(study, state), report)
    return state


def exchange(run: Run, grid: Grid, plan: RoundPlan, parameters: Parameters, *, pace: Pace) -> tuple[Answers, Pace]:
    """Ask every node that is online for one task; return what came back and the pace for the next task of its kind.

    - it ends when `is_settled` says so: never later than the study's deadline, plus one request
    - a node that comes online while the round is open is asked, too
    """
    began = run.clock()
    inbox = _Inbox(run=run, envelope=sign_round_plan(plan, run.key), plan=plan)
    content = pack(inbox.envelope, parameters)
    asked, sent = -ASK_SECONDS, 0.0  # when it was last looked who is online, and when somebody was last asked
    looks, longest_look = 0, 0.0
    while True:
        now = run.clock() - began
        if now - asked >= ASK_SECONDS:
            asked = now
            if nodes := inbox.unasked(grid.get_node_ids()):
                messages = [Message(content, node, plan.task.value) for node in nodes]  # Flower goes through it twice
                inbox.note_asked(nodes, list(grid.push_messages(messages)))
                sent = run.clock() - began
        now = run.clock() - began
        if inbox.waiting and now - sent >= pace.first_look_seconds:
            for reply in inbox.pull(grid):
                inbox.take(reply)
            looks, longest_look = looks + 1, max(longest_look, run.clock() - began - now)
        waited = run.clock() - began
        if inbox.is_settled(waited):
            if not inbox.waiting:  # a site that did not answer says nothing about when the others do
                pace = pace.after(looks=looks, settled_seconds=waited - sent, longest_look_seconds=longest_look)
            return inbox.answers(), pace
        pause = min(max(SHORTEST_PAUSE_SECONDS, waited * PAUSE_SHARE), LONGEST_PAUSE_SECONDS)
        ahead = pace.first_look_seconds - (waited - sent) if inbox.waiting else 0.0
        run.sleep(min(ahead, LONGEST_PAUSE_SECONDS) if ahead > 0 else pause)


@dataclass(slots=True, kw_only=True)
class _Inbox:
    """What is known in one exchange: who was asked, who has answered."""

    run: Run
    envelope: bytes
    plan: RoundPlan
    waiting: dict[str, int] = field(default_factory=dict)  # message id -> node
    asked: Counter[int] = field(default_factory=Counter)
    done: set[int] = field(default_factory=set)  # nodes that need not be asked again
    by_site: dict[str, SiteUpdate | Refusal] = field(default_factory=dict)
    evidence: dict[str, bytes] = field(default_factory=dict)  # verified, by site
    errors: Counter[str] = field(default_factory=Counter)
    unverified: int = 0
    suspicious: bool = False  # Flower could not read a reply

    def unasked(self, online: Iterable[int]) -> list[int]:
        busy = self.done | set(self.waiting.values())
        return sorted(node for node in online if node not in busy and self.asked[node] < ASKS)

    def note_asked(self, nodes: list[int], message_ids: list[str]) -> None:
        self.asked.update(nodes)
        # A message that was too large or malformed has no id, or there is no list at all.
        sent = {message_id: node for message_id, node in zip(message_ids, nodes, strict=False) if message_id}
        self.waiting |= sent
        if lost := len(nodes) - len(sent):
            self.errors[NOT_SENT] += lost

    def pull(self, grid: Grid) -> list[Message]:
        """Return the replies that are there. One that Flower itself cannot read counts as unverified.

        It takes the others of its batch with it, so everybody who had not answered is asked again, and from then on
        replies are pulled one by one: a site answers the same plan with the same sealed bytes.
        """
        waiting, replies = list(self.waiting), list[Message]()
        for batch in [[one] for one in waiting] if self.suspicious else [waiting] if waiting else []:
            try:
                replies += grid.pull_messages(batch)
            except httpx.HTTPError:  # the link, not a site; the run can be resumed
                raise
            except Exception as err:  # whatever a hostile reply makes Flower raise
                LOGGER.warning("a reply could not be read: %s", type(err).__name__)
                if self.suspicious:
                    self.unverified += 1
                    self.done.add(self.waiting.pop(batch[0]))
                else:
                    self.suspicious = True
                    self.waiting.clear()
        return replies

    def take(self, reply: Message) -> None:
        node = self.waiting.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            return
        if reply.has_error():
            self.errors[TRANSPORT_ERRORS.get(reply.error.code, "unknown")] += 1
            return
        self.done.add(node)
        signed = self.run.signed
        try:
            envelope, arrays, evidence = unpack_answer(reply.content)
            answer = verify_answer(
                envelope, arrays, plan=self.envelope, task=self.plan.task, study=signed.study, roster=signed.roster
            )
            checked = isinstance(answer, SiteUpdate) and self.check_evidence(answer.site, envelope, evidence)
        except VerificationError as err:
            self.unverified += 1
            if isinstance(err, EvidenceError):
                self.errors[err.field] += 1
            LOGGER.warning("an answer of node %d was ignored: %s", node, err)
            return
        # The first answer of a site stands; a second one could only be another node with the same key.
        if answer.site not in self.by_site:
            self.by_site[answer.site] = answer
            if checked:
                self.evidence[answer.site] = evidence

    def check_evidence(self, site: str, envelope: bytes, evidence: bytes) -> bool:
        """Return whether evidence is asked for. Raises `EvidenceError` where it is, and does not hold."""
        study, plan, witnesses = self.run.signed.study, self.plan, self.run.witnesses
        if witnesses is None or study.privacy.mode == "none":
            return False
        task = TaskKey(study=plan.study, run=plan.run, round=plan.round, attempt=plan.attempt, task=plan.task.value)
        expected = Expected(
            task=task, uses=task_uses(study, plan.task), plan=digest(self.envelope), output=digest(envelope)
        )
        (public_key,) = (key for key, name in self.run.signed.roster.keys().items() if name == site)
        log = hospital_log_key(site, public_key)
        verify_evidence(evidence, expected, log=log, witnesses=witnesses.keys, required=witnesses.required)
        return True

    def is_settled(self, waited_seconds: float) -> bool:
        answers = self.answers()
        return is_settled(
            self.run.signed.study,
            updates=len(answers.updates),
            refusals=len(answers.refusals),
            waiting=len(self.waiting),
            waited_seconds=waited_seconds,
        )

    def answers(self) -> Answers:
        everything = self.by_site.values()
        return Answers(
            updates=tuple(answer for answer in everything if isinstance(answer, SiteUpdate)),
            refusals=tuple(answer for answer in everything if isinstance(answer, Refusal)),
            errors=dict(self.errors),
            unverified=self.unverified,
            evidence=dict(self.evidence),
        )


def _note(run: Run, result: RoundResult, *, seconds: float) -> None:
    record = result.record
    entry = {"counts": result.counts, "seconds": seconds, **describe_record(record)}
    if result.counts and record.task is Task.EVALUATE:
        histograms = result.state.histograms[record.round]
        entry["metrics"] = describe_measurement(measure(run.signed.study, histograms))
    run.store.note(entry)


app = make_server_app(open_run)
