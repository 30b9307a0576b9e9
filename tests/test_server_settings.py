"""Settings come from the environment and from flags; what cannot work is refused in one line."""

from pathlib import Path

import pytest

from server.setting_values import BadSetting
from server.settings import make_settings, read_settings
from server.settings_table import SETTINGS


def test_without_any_setting_the_embedded_model_serves() -> None:
    settings = read_settings([], {})
    assert settings.embedded
    assert settings.model == "SmolLM2-135M-Instruct"
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_flags_win_over_the_environment_and_names_have_an_order() -> None:
    environment = {
        "PORT": "1",
        "MAX_RUNNING": "5",
        "UPSTREAM_OPENAI_BASE": "http://up:1/v1/",
        "API_TOKEN": "third",
        "HUGGINGFACEHUB_API_TOKEN": "second",
        "AGENT_MODEL": "",
    }
    settings = read_settings(["--port", "2", "--on-disconnect", "finish"], environment)
    assert (settings.port, settings.max_running) == (2, 5)
    assert settings.upstream_base == "http://up:1/v1"
    assert settings.token == "second"
    assert settings.model == "Qwen/Qwen3-1.7B"
    assert settings.on_disconnect == float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PORT", "http"),
        ("UPSTREAM_OPENAI_BASE", "localhost:1"),
        ("UPSTREAM_OPENAI_BASE", "http://h:99999/v1"),
        ("UNKNOWN_MODEL", "maybe"),
        ("NOTHINK_SCRUB", "all"),
        ("UPSTREAM_RESPONSES", "maybe"),
        ("THINK_TAGS", "a b"),
        ("THINK_STARTS_OPEN", "2"),
        ("REASONING_FORMAT", "x"),
        ("HEARTBEAT_SECONDS", "0"),
        ("MAX_RUNNING", "0"),
        ("RUN_SECONDS", "nan"),
        ("ON_DISCONNECT", "leave"),
        ("AGENTS", "no-source"),
        ("AGENTS", "a=m:x,a=m:y"),
        ("LOG_LEVEL", "LOUD"),
        ("RUNNER", "dask"),
        ("JAIL", "maybe"),
        ("MAX_BODY_BYTES", "10"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(BadSetting) as raised:
        read_settings([], {name: value})
    assert name in str(raised.value)
    assert repr(value) in str(raised.value)
    assert "allowed is" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--api-keys", "sécret"),
        ("--accel-key", "a secret of nginx"),
        ("--upstream-openai-base", "http://me:secret@host:x/v1"),
        ("--advertise-url", "http://me:secret@host:x"),
    ],
)
def test_a_secret_that_cannot_work_is_not_shown(flag: str, value: str) -> None:
    with pytest.raises(BadSetting) as raised:
        read_settings([flag, value], {})
    assert "cret" not in str(raised.value)


def test_another_model_needs_an_upstream() -> None:
    with pytest.raises(BadSetting, match="UPSTREAM_OPENAI_BASE"):
        read_settings([], {"AGENT_MODEL": "Qwen/Qwen3-1.7B"})


def test_secrets_are_not_in_the_settings_repr() -> None:
    shown = repr(make_settings(token="tok-1", api_keys=("key-1",)))
    assert "tok-1" not in shown
    assert "key-1" not in shown


def test_the_readme_lists_every_setting(readme: str) -> None:
    for setting in SETTINGS:
        for name in setting.names:
            assert f"`{name}`" in readme, name


RAY = {"runner": "ray", "ray_address": "head:6379", "ray_auth_token": "t"}


@pytest.mark.parametrize(
    ("without", "said"),
    [("ray_address", "RAY_ADDRESS is not set"), ("ray_auth_token", "RAY_AUTH_TOKEN is not set")],
)
def test_a_cluster_needs_an_address_and_a_token(without: str, said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        make_settings(**{name: value for name, value in RAY.items() if name != without})


def test_workers_cannot_share_a_port_for_the_cluster() -> None:
    with pytest.raises(BadSetting, match="RAY_LISTEN has port 7000"):
        make_settings(**RAY, workers=2, ray_listen=(None, 7000))
    assert make_settings(**RAY, workers=2).workers == 2
    assert make_settings(**RAY, ray_listen=(None, 7000)).workers == 1


def test_options_of_a_cluster_are_for_agents_that_there_are() -> None:
    agents = {"mine": "m:f"}
    options = {"*": {"num_cpus": 1}, "mine": {"runtime_env": {"pip": ["x"]}}}
    settings = make_settings(**RAY, agents=agents, ray_options=options)
    assert settings.agents_elsewhere == {"mine"}
    with pytest.raises(BadSetting, match="RAY_OPTIONS has 'yours'"):
        make_settings(**RAY, ray_options={"yours": {}})


@pytest.mark.parametrize(
    "text", ['{"*": {"max_retries": 3}}', '{"*": 1}', "[]", "{", "/no/such/file"]
)
def test_options_that_would_change_how_runs_are_carried_out_are_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="RAY_OPTIONS"):
        read_settings([], {"RAY_OPTIONS": text})


def test_where_a_cluster_is_and_where_its_workers_call(tmp_path: Path) -> None:
    options = tmp_path / "options.json"
    options.write_text('{"*": {"num_cpus": 2}}')
    told = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_LISTEN": ":7000", "RAY_OPTIONS": str(options)}
    settings = read_settings([], told)
    assert settings.ray_address == "10.0.0.1:6379"
    assert settings.ray_listen == (None, 7000)
    assert settings.ray_options == {"*": {"num_cpus": 2}}
    for name, text in (("RAY_ADDRESS", "ray://head:10001"), ("RAY_LISTEN", "7000")):
        with pytest.raises(BadSetting, match=name):
            read_settings([], {name: text})


def test_the_clusters_token_is_shown_nowhere() -> None:
    assert "a-token" not in repr(make_settings(**(RAY | {"ray_auth_token": "a-token"})))
