"""UPSTREAMS: what it may say, and how what cannot work is refused without telling a secret."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.setting_values import BadSetting
from server.settings import Settings, read_settings

ENTRY = {"models": ["a", "p/*"], "base": "http://up:1/v1/"}


def read(entries: Any, **environment: str) -> Settings:
    return read_settings([], {"UPSTREAMS": json.dumps(entries)} | environment)


def test_entries_come_after_the_first_upstream_and_take_its_settings_where_they_have_none() -> None:
    entry = ENTRY | {"token_env": "OTHER", "scrub": "block", "nothink_directive": ""}
    settings = read(
        [ENTRY, entry | {"name": "b", "starts_open": True}],
        UPSTREAM_OPENAI_BASE="http://first:1/v1",
        HF_TOKEN="one",
        OTHER="two",
        NOTHINK_SCRUB="reasoning",
        NOTHINK_BODY='{"reasoning_effort": "none"}',
    )
    first, second, third = settings.upstream_options()
    assert (first.name, first.models, first.token) == ("default", ("Qwen/Qwen3-1.7B",), "one")
    assert first.nothink_body == {"reasoning_effort": "none"}
    assert (second.name, second.base, second.token) == ("upstream-1", "http://up:1/v1", None)
    assert (second.scrub, second.nothink_directive) == ("reasoning", "/nothink")
    assert (second.nothink_body, second.starts_open) == ({}, False)
    assert (third.name, third.token, third.scrub) == ("b", "two", "block")
    assert (third.nothink_directive, third.starts_open) == ("", True)


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "upstreams.json"
    path.write_text(json.dumps([ENTRY]))
    settings = read_settings(["--upstreams", str(path)], {})
    assert settings.upstreams[0].models == ["a", "p/*"]


def test_without_a_first_upstream_the_agents_use_one_of_these_or_the_embedded_model() -> None:
    assert read([ENTRY]).embedded
    bases = [options.base for options in read([ENTRY]).upstream_options()]
    assert bases == [None, "http://up:1/v1"]
    for model in ("a", "p/x"):
        settings = read([ENTRY], AGENT_MODEL=model)
        assert not settings.embedded
        assert len(settings.upstream_options()) == 1
    with pytest.raises(BadSetting, match=r"AGENT_MODEL is 'b'.*allowed is .*a, p/\*"):
        read([ENTRY], AGENT_MODEL="b")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("[{", " is no valid JSON"),
        ("[]", " is an empty list"),
        (
            "https://me:hidden@models.test/v1",
            " is an address; allowed is a JSON list or the path of one",
        ),
        ("nowhere/upstreams.json", " is 'nowhere/upstreams.json', which cannot be read"),
        ({"models": ["a"]}, " does not fit: expected `array`"),
        ([{"models": ["a"]}], "[0] does not fit: object missing required field `base`"),
        ([ENTRY, ENTRY | {"bse": "x"}], "[1] does not fit: object contains unknown field `bse`"),
        ([ENTRY | {"base": "up:1"}], "[0].base is 'up:1'; allowed is an http"),
        ([ENTRY | {"base": "http://u:secret@up/v1?x"}], "[0].base is (hidden)"),
        ([ENTRY | {"models": []}], "[0].models is empty"),
        ([ENTRY | {"models": ["a*b"]}], "[0].models has 'a*b'"),
        ([ENTRY | {"strip_prefix": "p/"}], "[0].strip_prefix is 'p/'"),
        ([ENTRY | {"models": ["p/"], "strip_prefix": "p/"}], "[0].strip_prefix is 'p/'"),
        ([ENTRY | {"scrub": "all"}], "[0].scrub does not fit"),
        ([ENTRY | {"name": "a b"}], "[0].name is 'a b'"),
        ([ENTRY | {"name": "x"}, ENTRY | {"name": "x"}], "[1].name is 'x'"),
        ([ENTRY | {"name": "default"}], "[0].name is 'default'"),
        ([ENTRY | {"token": "se cret"}], "[0].token is (hidden)"),
        ([ENTRY | {"token": "secret", "token_env": "T"}], "[0] has more than one of token,"),
        ([ENTRY | {"token_env": "MISSING"}], "[0].token_env is 'MISSING'"),
        ([ENTRY | {"token_file": "/missing"}], "[0].token_file is '/missing'"),
        ([ENTRY | {"models": ["code-writing-agent"]}], " has 'code-writing-agent'"),
        ({"token": "secret"}, " does not fit"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(entries: Any, said: str) -> None:
    text = entries if isinstance(entries, str) else json.dumps(entries)
    with pytest.raises(BadSetting) as raised:
        read_settings([], {"UPSTREAMS": text})
    message = str(raised.value)
    assert message.startswith("UPSTREAMS" + said)
    assert "allowed" in message
    assert "secret" not in message
    assert "\n" not in message


def test_a_token_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret-3\n")
    settings = read([ENTRY | {"token_file": str(path)}])
    assert [options.token for options in settings.upstream_options()][-1] == "secret-3"
    assert str(path) not in repr(settings.upstream_options())


def test_no_token_is_in_a_repr() -> None:
    settings = read([ENTRY | {"token": "secret-1"}], HF_TOKEN="secret-2")
    assert "secret" not in repr(settings) + repr(settings.upstream_options())


@pytest.mark.parametrize("value", ["[1]", "none", "{"])
def test_nothink_body_is_an_object(value: str) -> None:
    with pytest.raises(BadSetting, match="NOTHINK_BODY"):
        read_settings([], {"NOTHINK_BODY": value})
