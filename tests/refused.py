import pytest

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal


def refused(call, *args) -> Refusal:
    """Why a call is refused; the error begins with the rule, in a sentence that fits into a header."""
    with pytest.raises(Refused) as caught:
        call(*args)
    found = caught.value
    assert str(found).startswith(found.refusal.sentence.partition("{")[0])
    assert len(str(found)) < 400
    return found.refusal
