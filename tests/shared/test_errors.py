from __future__ import annotations

import pickle

from fedtwin_shared.errors import ConfigurationError


def test_an_error_crosses_processes_whole() -> None:
    error = ConfigurationError(file="study.toml", field="training.rounds", expected="at least 1", found="0")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ConfigurationError
    assert str(again) == str(error) == "study.toml: training.rounds: expected at least 1, found 0"
    assert again.field == "training.rounds"
