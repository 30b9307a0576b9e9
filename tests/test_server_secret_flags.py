"""Secrets on the command line leave it, and still count."""

from pathlib import Path

import pytest
from server_process import server_process, status_of

from server.secret_flags import without_secrets
from server.setting_values import BadSetting
from server.settings import read_settings


def test_secrets_move_to_the_environment_in_both_spellings() -> None:
    kept, moved = without_secrets(
        [
            *("--port", "1", "--hf-token", "t", "--api-keys=a,b"),
            *("--ray-auth-token", "r", "--log-level", "DEBUG"),
        ]
    )
    assert kept == ["--port", "1", "--log-level", "DEBUG"]
    assert moved == {"HF_TOKEN": "t", "API_KEYS": "a,b", "RAY_AUTH_TOKEN": "r"}


def test_what_holds_no_secret_stays() -> None:
    arguments = ["--upstreams", "/etc/upstreams.json", "--upstream-openai-base", "http://up/v1"]
    assert without_secrets(arguments) == (arguments, {})
    arguments = ["--hf-token"]  # for argparse to complain of
    assert without_secrets(arguments) == (arguments, {})
    _, moved = without_secrets(["--upstreams", '[{"token": "t"}]'])
    assert set(moved) == {"UPSTREAMS"}
    _, moved = without_secrets(["--upstream-openai-base", "http://user:pass@up/v1"])
    assert set(moved) == {"UPSTREAM_OPENAI_BASE"}


def test_the_process_list_shows_no_secret_and_flags_still_win() -> None:
    flags = ("--api-keys", "sk-flag-secret", "--hf-token=hf-flag-secret", "--log-level", "INFO")
    with server_process(*flags, API_KEYS="sk-environment") as server:
        shown = Path(f"/proc/{server.process.pid}/cmdline").read_text()
        assert "flag-secret" not in shown
        assert "--log-level" in shown
        server.line_with("a secret on the command line")
        for key, status in (("sk-flag-secret", 200), ("sk-environment", 401)):
            assert status_of(f"{server.base}/v1/models", key=key) == status
        assert "flag-secret" not in "\n".join(server.lines)


def test_the_upstream_s_token_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hf_from-file\n")
    environment = {"API_TOKEN_FILE": str(path), "UPSTREAM_OPENAI_BASE": "http://up/v1"}
    assert read_settings([], environment).token == "hf_from-file"
    assert read_settings([], environment | {"HF_TOKEN": "hf_own"}).token == "hf_own"
    assert "hf_from-file" not in repr(read_settings([], environment))
    path.write_text("two words")
    with pytest.raises(BadSetting, match="API_TOKEN_FILE") as raised:
        read_settings([], environment)
    assert "two words" not in str(raised.value)
    with pytest.raises(BadSetting, match="cannot be read"):
        read_settings([], environment | {"API_TOKEN_FILE": str(tmp_path / "none")})
