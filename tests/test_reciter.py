"""The model that the agents in `compat/` are tested with says what its script says."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat.reciter import call, write_reciter
from parallm_openai import LLM

SCRIPT = [call("add", a=40, b=2), "The sum is 42, the sum is 42.", "The sum is 42."]


@pytest.mark.slow
def test_each_answer_follows_from_the_number_of_those_before(tmp_path: Path) -> None:
    with LLM(write_reciter(tmp_path, SCRIPT)) as llm:
        messages = [{"role": "user", "content": "Count, please: <|answer_1|>"}]
        for expected in [*SCRIPT, SCRIPT[-1]]:
            [result] = llm.chat([messages])
            answer = result.content
            assert answer == expected
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Again."}]


def test_answers_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="alike"):
        write_reciter(tmp_path, ["Yes.", "Yes."])
