import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varangian.protos.identity.bundle import NAME
from varangian.protos.identity.enrolment_token import EnrolmentToken, TokenError

CA = b"-----BEGIN CERTIFICATE-----\n"


@given(st.from_regex(NAME, fullmatch=True), st.binary(max_size=100))
def test_a_token_is_read_as_it_was_made(name, authority):
    token = EnrolmentToken.make(name, authority)
    read = EnrolmentToken.parse(token.text)
    assert (read, read.digest) == (token, token.digest)
    assert read.trusts(authority)
    assert not read.trusts(authority + b"\n")


def test_the_bytes_of_a_token():
    token = EnrolmentToken("w15", bytes(range(20)), hashlib.sha256(CA).digest()[:10])
    assert token.text == "O4YTKAABAIBQIBIGA4EASCQLBQGQ4DYQCEJBH" + token.text[37:]
    assert token.trusts(CA)
    assert token.digest == hashlib.blake2b(token.text.encode(), digest_size=32).hexdigest()


def test_two_tokens_of_a_name_have_nothing_but_name_and_authority_in_common():
    first, second = (EnrolmentToken.make("w15", CA) for _ in range(2))
    assert first.secret != second.secret
    assert first.digest != second.digest
    assert (first.name, first.pin) == (second.name, second.pin)


def test_how_it_was_copied_does_not_matter():
    token = EnrolmentToken.make("w15", CA)
    text = token.text.lower()
    assert EnrolmentToken.parse(f"  {text[:8]}-{text[8:30]}\n {text[30:]} \n") == token


@given(st.text(max_size=300))
def test_any_text_is_a_token_or_refused(text):
    with contextlib.suppress(TokenError):
        assert EnrolmentToken.parse(text).text == "".join(text.split()).replace("-", "").upper()


@pytest.mark.parametrize("cut", [1, 8, 30])
def test_half_a_token_is_none(cut):
    whole = EnrolmentToken.make("w15", CA).text
    for part in (whole[:-cut], whole[cut:], whole + "A" * cut):
        try:
            found = EnrolmentToken.parse(part)
        except TokenError:
            continue
        assert found.text == part  # of another name or another secret, which the server does not know


def test_a_token_is_not_shown_by_accident():
    token = EnrolmentToken.make("w15", CA)
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)
    with pytest.raises(TokenError) as caught:
        EnrolmentToken.parse(token.text[:-1] + "0")
    assert token.text[:20] not in str(caught.value)


@pytest.mark.parametrize("text", ["", " \n", "A" * 257, "1", "é", "=", "AAAA====", "\x00"])
def test_what_is_no_token(text):
    with pytest.raises(TokenError, match="should be"):
        EnrolmentToken.parse(text)
