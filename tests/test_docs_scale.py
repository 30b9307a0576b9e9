"""What docs/scale.md says can be read by those it is for: its manifest is YAML, its settings are ours."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.ray_settings import OPTION_NAMES, ray_options
from server.settings import read_settings
from server.settings_table import SETTINGS

TEXT = (Path(__file__).parent.parent / "docs" / "scale.md").read_text()
# What Ray and smolgate read beyond the table of settings.
RAYS_OWN = {"RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"}


@pytest.fixture(scope="module")
def manifest() -> list[Any]:
    (found,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    return list(yaml.safe_load_all(found))


def test_the_manifests_settings_work(manifest: list[Any]) -> None:
    kinds = {part["kind"]: part for part in manifest}
    assert set(kinds) == {"Secret", "RayCluster", "Deployment", "Service"}
    (server,) = (
        container
        for container in kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
        if container["name"] == "server"
    )
    told = {entry["name"]: entry["value"] for entry in server["env"]}
    settings = read_settings([], told | kinds["Secret"]["stringData"])
    assert settings.runner == "ray"
    known = {name for setting in SETTINGS for name in setting.names}
    assert set(told) <= known
    service = kinds["RayCluster"]["metadata"]["name"] + "-head-svc"
    assert settings.ray_address == f"{service}:6379"


def test_the_options_shown_are_options(manifest: list[Any]) -> None:
    (shown,) = re.findall(r"RAY_OPTIONS='(.*?)'", TEXT, re.DOTALL)
    assert set(ray_options(shown)) == {"*", "painter", "analyst"}
    for name in OPTION_NAMES:
        assert f"`{name}`" in TEXT
