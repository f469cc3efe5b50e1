"""Flower's own strategies as one pure function: global model and verified updates in, global model out.

Design note: Flower's strategies also sample nodes (and wait for ever while too few are online), poll every three
seconds and weigh by numbers that the sites send. Only their arithmetic is used here: FedAvg, FedProx (its proximal
term is the sites' part), FedAvgM without momentum where the study sets a server learning rate, FedAdam and FedYogi
(Reddi et al., ICLR 2021) with Flower's default β₁ and β₂. Weights are the study's public constants.
Every call builds a fresh strategy from the model's moments, so nothing survives between rounds but the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from fedtwin_server.errors import RunError
from fedtwin_server.rounds import GlobalModel
from fedtwin_shared.models import Parameters
from fedtwin_shared.round import SiteUpdate, Task
from fedtwin_shared.study import Study, Training

WEIGHT = "weight"
_NOWHERE = Metadata(
    run_id=0,
    message_id="",
    src_node_id=0,
    dst_node_id=0,
    reply_to_message_id="",
    group_id="",
    created_at=0.0,
    ttl=0.0,
    message_type=Task.TRAIN.value,
)


def aggregate_updates(study: Study, number: int, model: GlobalModel, updates: Sequence[SiteUpdate]) -> GlobalModel:
    """Return the global model after training round `number` (from 1).

    - a resumed run gets bit for bit what an uninterrupted one gets: all state is in `model`
    - an update's weight is its site's constant in the study ÷ the sum over `updates`
    """
    strategy = make_strategy(study.training, model)
    arrays, _ = strategy.aggregate_train(number, [_as_reply(study, update) for update in updates])
    if arrays is None:
        raise RunError(field="updates", expected="at least one", found="none")
    moments = (strategy.m_t, strategy.v_t) if isinstance(strategy, FedAdam | FedYogi) else (None, None)
    return GlobalModel(
        parameters={name: arrays[name].numpy().astype(np.float32) for name in model.parameters},
        first_moment=dict(moments[0] or {}),
        second_moment=dict(moments[1] or {}),
    )


def make_strategy(training: Training, model: GlobalModel) -> FedAvg:
    """Return Flower's strategy for the study's algorithm, standing where `model` left it."""
    rate = training.server_learning_rate
    if training.algorithm in ("fedadam", "fedyogi"):
        kind = FedAdam if training.algorithm == "fedadam" else FedYogi
        adaptive = kind(weighted_by_key=WEIGHT, eta=rate, tau=training.server_tau)
        adaptive.current_arrays = _copy(model.parameters)
        adaptive.m_t, adaptive.v_t = _copy(model.first_moment), _copy(model.second_moment)
        return adaptive
    if rate != 1:
        scaled = FedAvgM(weighted_by_key=WEIGHT, server_learning_rate=rate)
        scaled.current_arrays = _as_record(model.parameters)
        return scaled
    if training.algorithm == "fedprox":
        return FedProx(weighted_by_key=WEIGHT, proximal_mu=training.proximal)
    return FedAvg(weighted_by_key=WEIGHT)


def _as_reply(study: Study, update: SiteUpdate) -> Message:
    """Return the update as the message that Flower's strategies read; it is never sent."""
    part = study.participant(update.site)
    if part is None:
        raise RunError(field="updates", expected="a participant of the study", found=update.site)
    content = RecordDict({"arrays": _as_record(update.arrays), "metrics": MetricRecord({WEIGHT: part.weight})})
    return make_message(_NOWHERE, content)


def _as_record(arrays: Mapping[str, npt.NDArray[np.generic]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def _copy(arrays: Parameters) -> dict[str, npt.NDArray[np.generic]]:
    return {name: array.copy() for name, array in arrays.items()}
