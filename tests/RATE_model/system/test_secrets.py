"""Which text is hidden as a key."""

import pytest

from RATE_model.errors import UserError
from RATE_model.system.secrets import redact, remember_key

OLD, NEW = "0123456789abcdef" * 2 + "01234567", "wandb_v1_" + "aB3_" * 19


@pytest.mark.parametrize("text", ["--text={}", "key '{}'", "local-{}", "{}", "a: {}\nb: 1"])
def test_text_that_looks_like_a_key_is_hidden(text):
    for key in (OLD, NEW):
        assert redact(text.format(key)) == text.format("***") == str(UserError(text.format(key)))


@pytest.mark.parametrize("text", [f"/hub/snapshots/{OLD}/data", f"{OLD}0", OLD[:-1], "wandb_v1_short", ""])
def test_other_text_is_shown(text):
    assert redact(text) == text


def test_known_keys_are_hidden_anywhere(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "not-a-usual-key")
    remember_key("remembered")
    assert redact("xnot-a-usual-keyx remembered1") == "x***x ***1"
