"""Which headers go on to the other side."""

from multidict import CIMultiDict, CIMultiDictProxy

from streaming.relay import MAX_NAME_CHARACTERS, MAX_NAMES, HeaderFilter, relayed_headers


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


def test_a_header_is_dropped_however_it_is_spelled_and_however_often_it_comes() -> None:
    passing = HeaderFilter(["cookie"])
    sent = headers(("Cookie", "1"), ("X-Kept", "2"), ("cOOKIE", "3"), ("x-kept", "4"))
    for _ in range(2):
        assert relayed_headers(sent, passing) == [("X-Kept", "2"), ("x-kept", "4")]


def test_what_connection_names_is_dropped_of_this_message_and_not_of_the_next() -> None:
    passing = HeaderFilter(["connection"])
    named = headers(("Connection", "close, X-One"), ("X-One", "1"), ("X-Two", "2"))
    plain = headers(("Connection", "keep-alive"), ("X-One", "1"), ("X-Two", "2"))
    assert relayed_headers(plain, passing) == [("X-One", "1"), ("X-Two", "2")]
    assert relayed_headers(named, passing) == [("X-Two", "2")]
    assert relayed_headers(plain, passing) == [("X-One", "1"), ("X-Two", "2")]


def test_names_that_strangers_make_up_are_not_remembered_without_end() -> None:
    passing = HeaderFilter(["cookie"])
    for number in range(3 * MAX_NAMES):
        sent = headers((f"X-{number}", "1"), ("Cookie", "2"))
        assert relayed_headers(sent, passing) == [(f"X-{number}", "1")]
        assert len(passing) <= MAX_NAMES
    long = "X" * (MAX_NAME_CHARACTERS + 1)
    assert relayed_headers(headers((long, "1")), passing) == [(long, "1")]
    assert long not in passing
