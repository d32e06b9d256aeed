"""Addresses are parsed where they come in: what is no address is refused with what was probably meant."""

import pytest

from varangian.protos.network.address import (
    AddressError,
    is_loopback,
    join_host_port,
    normalise_host,
    parse_address,
    parse_certificate_host,
    parse_listen_host,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("server.example:50051", ("server.example", 50051)),
        ("Server.Example.:1", ("server.example", 1)),
        ("bücher.example:5", ("xn--bcher-kva.example", 5)),
        ("my_service:5", ("my_service", 5)),
        ("10.0.0.1:0", ("10.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_an_address_is_a_host_and_a_port(text, found):
    assert parse_address(text) == found
    assert parse_address(join_host_port(*found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.b", "Did you mean a.b:50051?"),
        ("::1", "Did you mean [::1]:50051?"),
        ("https://a.b:5", "without a scheme or a path. Found 'https://a.b:5'. Did you mean a.b:5?"),
        ("a.b:5/x", "Did you mean a.b:5?"),
        ("a.b:65536", "a port from 0 to 65535"),
        ("a.b:port", "a port from 0 to 65535"),
        ("1.2.3:5", "this is none"),
        ("300.1.1.1:5", "this is none"),
        ("a..b:5", "host name or an IP address"),
        ("-a:5", "host name or an IP address"),
        ("*:5", "host name or an IP address"),
        ("a b:5", "host name or an IP address"),
        (":5", "HOST:PORT. Found ':5'"),
        ("", "HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused(text, words):
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert words in str(caught.value)


def test_a_host_stands_alone():
    assert [normalise_host(name) for name in ("[::1]", "::1", "A.b")] == ["::1", "::1", "a.b"]
    with pytest.raises(AddressError, match=r"Leave the port out: server\.example"):
        normalise_host("server.example:50051")


def test_a_certificate_may_be_for_every_name_below_a_domain():
    assert parse_certificate_host("*.example.org") == "*.example.org"
    for name in ("*", "*.org", "*.10.0.0.1", "a.*.org"):
        with pytest.raises(AddressError):
            parse_certificate_host(name)


def test_a_server_may_listen_everywhere_which_is_beyond_this_machine():
    assert parse_listen_host("*") == "*"
    assert not is_loopback("*")
    assert all(map(is_loopback, ("127.0.0.1", "[::1]", "localhost")))
