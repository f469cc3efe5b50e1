"""The journal of simulations keeps the contract."""

from __future__ import annotations

import pytest

from fedtwin_client.journal import Journal, MemoryJournal
from tests.contracts.journal_contract import JournalContract


class TestMemoryJournal(JournalContract):
    @pytest.fixture
    def journal(self) -> Journal:
        return MemoryJournal()
