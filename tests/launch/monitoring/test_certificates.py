from varangian.launch.monitoring.certificates import certificate_warnings

NOW, DAY = 1_000_000_000.0, 86400.0


def warnings(ends=None, revoked=None):
    return certificate_warnings(
        {name: NOW + DAY * days for name, days in (ends or {}).items()}, revoked or {}, NOW
    )


def test_certificates_that_last_are_no_news():
    assert warnings({"w00": 30, "w01": 3.1}) == []


def test_who_should_renew_is_said_with_the_first_end():
    (said,) = warnings({"w02": 2, "w00": 1, "w01": 30})
    assert said == (
        "The certificate of w00, w02, the first of them ends at 2001-09-10 01:46 UTC: renew it."
    )
    assert warnings({"w00": 1}) == ["The certificate of w00 ends at 2001-09-10 01:46 UTC: renew it."]


def test_what_has_ended_and_who_is_left_out():
    assert warnings({"w00": -1}, {"w01": "its certificate was revoked"}) == [
        "w01 is left out: its certificate was revoked.",
        "The certificate of w00 has ended: renew it.",
    ]


def test_of_very_many_a_few_are_named():
    names = {f"w{i:03}\x1b": -1 for i in range(300)}
    said = warnings(names, dict.fromkeys(names, "its certificate was revoked"))
    assert len(said) == 2
    assert all("and 295 more" in text for text in said)
    assert not any("\x1b" in text for text in said)
