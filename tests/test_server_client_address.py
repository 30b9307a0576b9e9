"""Whose address counts: the last that no trusted proxy wrote about itself, and no forged one."""

import pytest

from server.client_address import behind
from server.setting_values import networks

LOOPBACK, CHAIN = networks("127.0.0.1"), networks("127.0.0.1, 10.0.0.0/8, ::1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.1", [], "203.0.113.1"),
        ("203.0.113.1", ["198.51.100.7"], "203.0.113.1"),  # anybody can write one
        ("127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        (
            "127.0.0.1",
            ["198.51.100.7, 203.0.113.1"],
            "203.0.113.1",
        ),  # the first is the client's word
        ("127.0.0.1", ["198.51.100.7, 203.0.113.1, 10.1.2.3"], "203.0.113.1"),
        ("127.0.0.1", ["198.51.100.7", "203.0.113.1,10.1.2.3"], "203.0.113.1"),
        ("::1", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["nonsense, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["x\x1b[31m"], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["fe80::1%eth0"], "fe80::1%eth0"),
        ("127.0.0.1", ["fe80::1%\x1b[31m"], "127.0.0.1"),
        ("127.0.0.1", ["fe80::1%\udcff"], "127.0.0.1"),
        ("127.0.0.1", ["fe80::1%x GET forged 200"], "127.0.0.1"),
        ("127.0.0.1", ["fe80::1%" + "x" * 8000], "127.0.0.1"),
        ("unix", ["198.51.100.7"], "unix"),
        ("fe80::1%eth0", ["198.51.100.7"], "fe80::1%eth0"),
    ],
)
def test_of_a_chain_of_proxies(peer: str, forwarded: list[str], address: str) -> None:
    assert behind(peer, forwarded, CHAIN) == address


def test_the_other_end_of_a_unix_socket_is_trusted_by_name() -> None:
    assert behind("unix", ["198.51.100.7"], networks("unix")) == "198.51.100.7"
    assert behind("127.0.0.1", ["198.51.100.7"], networks("unix")) == "127.0.0.1"


def test_a_chain_of_proxies_of_ours_ends_at_its_first() -> None:
    assert behind("127.0.0.1", [", ".join(["127.0.0.1"] * 1000)], LOOPBACK) == "127.0.0.1"


@pytest.mark.parametrize("text", ["nonsense", "10.0.0.1/8", "300.0.0.1"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not appear|host bits"):
        networks(text)
