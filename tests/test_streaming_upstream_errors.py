"""An upstream's error texts: the reason stays, addresses, paths, names and secrets go."""

import time
from typing import Any

import pytest

from streaming.upstream_errors import MAX_CHARACTERS, error_text, retry_after_seconds


@pytest.mark.parametrize(
    "secret",
    [
        "/srv/models/x.gguf",
        "/etc/passwd",
        "/home/ann/run.py",
        "/model.gguf",
        "vllm-0.models.svc",
        "C:\\models\\x.gguf",
        "~/models/x.gguf",
        "http://vllm.internal/v1",
        "https://user:pw@host.internal:8443/v1?key=1",
        "unix:///run/x.sock",
        "gpu-7.internal:8000",
        "gpu7:8000",
        "localhost:11434",
        "10.1.2.3",
        "10.1.2.3:8000",
        "[::1]:8000",
        "fe80::1ff:fe23:4567:890a",
        "sk-abcdef123456",
        "sk-proj-Ab_12-cd34",
        "hf_AbCdEfGhIj",
        "Bearer abcdef.ghijkl",
        "eyJhbGciOi.eyJzdWIi.sig",
        "tok-secret-1",
        "up-token-77",
    ],
)
def test_what_would_tell_too_much_is_hidden_and_the_reason_stays(secret: str) -> None:
    for text in (
        f"context length exceeded at {secret}, sorry",
        f"context length exceeded ('{secret}') sorry",
        f"{secret}: context length exceeded, sorry",
    ):
        said = error_text({"error": {"message": text}}, "up-token-77")
        assert secret not in said
        assert "context length exceeded" in said
        assert "sorry" in said
        assert "(hidden)" in said


@pytest.mark.parametrize(
    "harmless",
    [
        "This model's maximum context length is 4096 tokens; you asked for 5,120 (5000 in, 120 out).",
        "Rate limit reached: 10 requests/min, try again in 1.5s",
        "The key 'max_tokens' must be at most 2048.",
        "started at 12:30:45, std::bad_alloc",
        "Bearer authentication required",
        "Ratio 1:2 and time 12:30 are fine and/or ok",
        "model 'Qwen3-1.7B' not found, code: 404",
        "tokens and keys are missing",
    ],
)
def test_an_ordinary_reason_is_said_as_it_is(harmless: str) -> None:
    assert error_text({"message": harmless}) == harmless


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": {"detail": "b"}}, "b"),
        ({"error": {"code": "c"}}, "c"),
        ({"error": {}}, "no reason"),
        ({"error": "d"}, "d"),
        ({"object": "error", "message": "e"}, "e"),
        ({"detail": "f"}, "f"),
        ("g", "g"),
        ({"error": {"message": "x" * 1000}}, "x" * MAX_CHARACTERS),
    ],
)
def test_the_message_is_found_wherever_servers_put_it(error: Any, said: str) -> None:
    assert error_text(error) == said


def test_a_cut_does_not_bring_a_hidden_text_back() -> None:
    said = error_text("x " * 140 + "http://a.internal/secret", None)
    assert "internal" not in said


@pytest.mark.parametrize("unit", ["x", "a.", "a:", "/", "a-", "~/", "[:", "1.", "0:"])
def test_a_megabyte_without_a_blank_is_read_in_no_time(unit: str) -> None:
    began = time.process_time()
    assert len(error_text(unit * 1_000_000)) <= MAX_CHARACTERS
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("9", 9.0), ("1.5", 1.5), ("", None), ("-1", None), ("soon", None), ("9999999", None)],
)
def test_retry_after_counts_where_it_is_a_number_of_seconds(
    value: str, seconds: float | None
) -> None:
    assert retry_after_seconds({"Retry-After": value}) == seconds
    assert retry_after_seconds({}) is None
